"""When an episode is over. Pure.

An alarm is raised by one window at a level of one in thousands; the all-clear asks for far less to hold it back
(hysteresis), or what is too weak for an alarm in every window would be over after some, and news again after the next:
one problem, told over and over. So the windows since must be quiet one by one, and nothing at one in twenty together.

Of many p-values together little is left of a drift that each window shows a little of. Questions, whose drifts grow
slowly, are therefore looked at once more as one sample, over more windows, against more of the reference: what shows
in a tenth of them is seen (`longer_look`). That look may itself be wrong, and for long where a reference is unlucky,
so it holds no episode open beyond a stated number of quiet windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from tuneloop.monitor.embeddings import Embed
from tuneloop.monitor.signals import PARITY
from tuneloop.registry.nouns import RequestRecord, WindowScore

CLEAR_LEVEL = 0.05  # of what the last windows show together
LONGER = 2  # times `clear_after`: full windows' records of the longer look, quiet window by window
LATEST = 10  # times `clear_after`: so many full windows' quiet records end an episode whatever the longer look says
MOST_TEXTS = 1_000  # of a longer look; of more, every so-manieth
_UNSPOKEN = "too_few_of_a_group"
_UNASKED = {_UNSPOKEN, "not_looked_for", "not_measured"}
_TOO_LITTLE = {"too_few_corrections", "too_few_thumbs", "too_little_text", *_UNASKED}


def first(scores: Sequence[WindowScore], windows: int, records: int) -> list[WindowScore]:
    """The first of these: as few as are so many windows, and hold so many records, as time may have closed some early;
    none where all of them are fewer."""
    held = 0
    for taken, score in enumerate(scores, start=1):
        held += len(score.request_ids)
        if taken >= windows and held >= records:
            return list(scores[:taken])
    return []


def newest(scores: Sequence[WindowScore], windows: int, records: int) -> list[WindowScore]:
    """The last of these, which are in order, likewise."""
    return first(scores[::-1], windows, records)[::-1]


def is_quiet(scores: Sequence[WindowScore], clear_after: int, records: int = 0) -> bool:
    """Whether the last `clear_after` windows that could be judged, of so many records at least, raised nothing, nor
    together come near it; `scores` of one stream.

    What is too weak for an alarm in every window would else be over after some, and news again after the next: one
    problem, told over and over. So their p-values together (Fisher's method) must be none of the smallest 5 %; of
    parity, which takes windows together itself, the last one.
    """
    in_order = sorted(scores, key=lambda score: int(score.detail["window"]))
    judged = newest([score for score in in_order if score.verdict != "not enough data"], clear_after, records)
    if not judged or any(score.verdict == "drift" for score in judged):
        return False
    apart = judged[-1:] if judged[-1].signal == PARITY else judged
    return _combined([score.p_value for score in apart if score.p_value is not None]) >= CLEAR_LEVEL


def _combined(p_values: Sequence[float]) -> float:
    from scipy.stats import combine_pvalues  # noqa: PLC0415 (half a second; `tuneloop alerts` needs none)

    return float(combine_pvalues(p_values, method="fisher").pvalue) if p_values else 1.0


def is_silent(scores: Sequence[WindowScore], clear_after: int, records: int = 0) -> bool:
    """Whether there was too little to judge by in the last `clear_after` windows, of so many records at least, of what
    users said or of answers on record with their text; `scores` of one stream.

    An engine that is away is no such silence: what it would have said is not known.
    """
    in_order = sorted(scores, key=lambda score: int(score.detail["window"]))
    last = newest(in_order, clear_after, records)
    return bool(last) and all(_TOO_LITTLE & score.detail.keys() for score in last)


def is_unspoken(scores: Sequence[WindowScore], clear_after: int, records: int = 0) -> bool:
    """Whether nothing could tell in the last `clear_after` windows, of so many records at least: of parity, that no
    group of people was spoken of often enough; of what guards find, that they look for other things; of speeds, that no
    record tells them any more. What nobody could see keeps no episode open; `scores` of one stream."""
    in_order = sorted(scores, key=lambda score: int(score.detail["window"]))
    last = newest(in_order, clear_after, records)
    return bool(last) and all(_UNASKED & score.detail.keys() for score in last)


@dataclass(frozen=True)
class Look:
    """What the windows since the last alarm say together of whether questions are again what they were."""

    over: bool
    why: str


def since_alarm(scores: Sequence[WindowScore]) -> list[WindowScore]:
    """The judged windows of one stream after the last that raised an alarm, in order."""
    in_order = sorted(scores, key=lambda score: int(score.detail["window"]))
    judged = [score for score in in_order if score.verdict != "not enough data"]
    last = max((index for index, score in enumerate(judged) if score.verdict == "drift"), default=-1)
    return judged[last + 1 :]


def longer_look(
    quiet: Sequence[WindowScore],
    clear_after: int,
    reference: Sequence[RequestRecord],
    pool: Sequence[RequestRecord],
    embed: Embed | None = None,
    *,
    records: int = 0,
) -> Look:
    """Whether questions are again what they were: the newest quiet windows as one sample, at CLEAR_LEVEL.

    Args:
        quiet: the windows since the last alarm, in order, `LONGER` times `clear_after` full ones' records or more.
        clear_after: quiet windows in a row that end an episode of another signal.
        reference: what the pool is held against.
        pool: the records of the newest of these windows, of so many records, as far as they are held still, MOST_TEXTS
            at most.
        embed: what the monitor reads questions with, if with anything.
        records: those of `clear_after` full windows; time may have closed some early.
    """
    import numpy as np  # noqa: PLC0415 (`tuneloop alerts` needs none)

    from tuneloop.monitor.textdrift import text_test  # noqa: PLC0415 (with scikit-learn a second)

    said = f"{len(quiet)} windows in a row without an alarm"
    if not pool:
        return Look(True, f"{said}; their records are not held any more")
    rng = np.random.default_rng(int(sha256(quiet[-1].id.encode()).hexdigest()[:16], 16))
    before, now = ([record.question for record in side] for side in (spread(reference), pool))
    p_value = text_test(before + now, len(before), CLEAR_LEVEL, rng, embed).outcome.p_value
    together = f"the newest {len(pool)} questions together"
    if p_value >= CLEAR_LEVEL:
        return Look(True, f"{said}; {together} are like the reference's (p {p_value:.2g})")
    if newest(quiet, LATEST * clear_after, LATEST * records):
        return Look(True, f"{said}; {together} differ still (p {p_value:.2g}), by less than any window shows")
    return Look(False, f"{said}, but {together} are not yet like the reference's (p {p_value:.2g})")


def spread(records: Sequence[RequestRecord]) -> Sequence[RequestRecord]:
    """MOST_TEXTS of them at most, evenly over their time."""
    if len(records) <= MOST_TEXTS:
        return records
    return [records[index * len(records) // MOST_TEXTS] for index in range(MOST_TEXTS)]
