"""What the monitor says of a challenger while it is tried, as one check of a rollout; pure.

Most signals compare a version with what it was, not with another version. So one that drifts under the challenger
counts against it only while the same signal was judged quiet under the champion at the same time: where both drift, or
the monitor has too little to say of either, the rollout cannot tell. What an engine serves under the challenger's name
is no matter of traffic (`served_model_change`), and signals of a trial (`trial_…`) are differences from the concurrent
champion already: those count without a verdict about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import get_args

from tuneloop.registry.nouns import ChallengerSignal, Check, Verdict, WindowScore

_GRAVER: tuple[Verdict, ...] = ("pass", "inconclusive", "fail")
_BY_ITSELF: tuple[ChallengerSignal, ...] = get_args(ChallengerSignal)
_NOTHING = "the monitor has not said anything of it on this trial"


def quality(
    challenger: Iterable[WindowScore], champion: Iterable[WindowScore], *, since: datetime, wanted: Sequence[str]
) -> Check | None:
    """The newest verdict of each signal about windows that ended after `since`, put together.

    Args:
        challenger: its judged windows, in order of time.
        champion: the champion's.
        since: when the trial began.
        wanted: signals that must have been judged; others count where they were.

    Returns:
        None where nothing is wanted and nothing was judged.
    """
    theirs, own = _newest(champion, since), _newest(challenger, since)
    found = {
        signal: _verdict(own.get(signal), theirs.get(signal), signal in wanted) for signal in sorted({*own, *wanted})
    }
    said = {signal: verdict for signal, verdict in found.items() if verdict is not None}
    if not said:
        return None
    worst = max((verdict for verdict, _ in said.values()), key=_GRAVER.index)
    return Check(
        name="quality", verdict=worst, detail="; ".join(f"{signal}: {why}" for signal, (_, why) in said.items())
    )


def _newest(scores: Iterable[WindowScore], since: datetime) -> dict[str, WindowScore]:
    """Signal → its newest window of the trial; a baseline, which is what others are held against, judges nothing."""
    return {score.signal: score for score in scores if score.window_end > since and "rounds" not in score.detail}


def _verdict(own: WindowScore | None, champion: WindowScore | None, wanted: bool) -> tuple[Verdict, str] | None:
    if own is None or own.verdict == "not enough data":
        if not wanted:
            return None
        return "inconclusive", _NOTHING if own is None else f"not enough data ({own.n} records)"
    seen = f"{own.statistic:.4g}, threshold {own.threshold:.4g}"
    if own.verdict == "none":
        return "pass", f"quiet ({seen})"
    theirs = "not enough data" if champion is None else champion.verdict
    if champion is not None and theirs == "drift":
        return "inconclusive", f"drifts ({seen}), and so does the champion's ({champion.statistic:.4g})"
    if theirs == "none" or own.signal in _BY_ITSELF:
        return "fail", f"drifts ({seen})" + (", the champion's does not" if theirs == "none" else "")
    return "inconclusive", f"drifts ({seen}), and the monitor has not judged the champion's on this trial"
