"""What the windows of a challenger and of its champion at the same time say together. Pure.

Four things that may not be worse: the share of answers that refuse, the share that is broken, and what an engine makes
of texts, each version reading its own: of its answers (of a version that knows what it says they are likely; one that
babbles is surprised by itself) and of what its users say it should have answered. Thumbs, corrections, tokens and
output guards are judged by the rollout itself, from records without their text.

Both arms are read by the same rules, so that a wrong rule costs power only. Each signal is judged at ALPHA over all
looks of a trial, and the four at 5 % together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.monitor.quality import is_broken, is_refusal
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import (
    DETECTORS_OF_TRIALS,
    TRIAL_ANSWER_PERPLEXITY,
    TRIAL_BROKEN_ANSWERS,
    TRIAL_CORRECTION_PERPLEXITY,
    TRIAL_REFUSALS,
)
from tuneloop.registry.nouns import RequestRecord
from tuneloop.registry.nouns import Verdict as OfACheck
from tuneloop.registry.rollouts.canary import always_valid_difference, not_above, share_check

ALPHA = 0.05 / len(DETECTORS_OF_TRIALS)
ENOUGH_TEXT = 0.8  # of either side's answers; a comparison of fewer would look at a chosen part of the traffic
_SHARES = {TRIAL_REFUSALS: ("refuse", is_refusal), TRIAL_BROKEN_ANSWERS: ("are broken", is_broken)}
_TEXTS = {TRIAL_ANSWER_PERPLEXITY: "answers", TRIAL_CORRECTION_PERPLEXITY: "corrections"}
_SAID: dict[OfACheck, Literal["drift", "none", "not enough data"]] = {
    "fail": "drift",
    "pass": "none",
    "inconclusive": "not enough data",
}
# version's records, request id → text → request id → nats per token of the text, of those that could be read
Read = Callable[[Sequence[RequestRecord], Mapping[str, str]], Mapping[str, float]]


@dataclass(frozen=True)
class Arms:
    """What both answered in one window of the challenger's."""

    champion: tuple[RequestRecord, ...]
    challenger: tuple[RequestRecord, ...]

    def named(self) -> dict[str, tuple[RequestRecord, ...]]:
        """By name, as the measured values are kept."""
        return {"champion": self.champion, "challenger": self.challenger}


@dataclass(frozen=True)
class Measured:
    """One signal of one window, JSON by arm: (hits, answers) of a share, else nats per token of each text."""

    values: dict[str, list[Any]]
    why: str = ""  # there are none


@dataclass(frozen=True)
class Said:
    """What all windows of a trial so far say of one signal."""

    verdict: Literal["drift", "none", "not enough data"]
    estimate: float  # how much more the challenger has
    margin: float  # that it may have
    interval: tuple[float, float] | None
    why: str


def measured(signal: str, arms: Arms, corrections: Mapping[str, str], read: Mapping[str, Read]) -> Measured:
    """One signal of one window.

    Args:
        signal: one of DETECTORS_OF_TRIALS.
        arms: the records.
        corrections: request id → how the answer should have read, where a user said so.
        read: how each arm's version reads texts.
    """
    if not arms.champion:
        return Measured({}, "the champion answered nothing in that time")
    sides = arms.named()
    if signal == TRIAL_CORRECTION_PERPLEXITY:
        texts = {name: {r.id: corrections[r.id] for r in side if r.id in corrections} for name, side in sides.items()}
    else:
        texts = {name: {r.id: r.answer for r in side if r.answer is not None} for name, side in sides.items()}
        for name, side in sides.items():
            if len(texts[name]) < ENOUGH_TEXT * len(side):
                lacking = len(side) - len(texts[name])
                return Measured({}, f"{lacking} of the {name}'s {len(side)} answers are on record without their text")
    if signal in _SHARES:
        _, has = _SHARES[signal]
        return Measured({name: [sum(map(has, said.values())), len(said)] for name, said in texts.items()})
    most = len(arms.challenger)
    found: dict[str, list[Any]] = {}
    for name, side in sides.items():
        wanted = [record for record in side if texts[name].get(record.id, "").strip()]
        some = wanted if len(wanted) <= most else [wanted[i * len(wanted) // most] for i in range(most)]
        nats = read[name](some, {record.id: texts[name][record.id] for record in some}) if some else {}
        found[name] = [round(value, 4) for value in nats.values()]
    return Measured(found)


def said_of(signal: str, windows: Sequence[Mapping[str, list[Any]]], settings: MonitorSettings) -> Said:
    """What the measured windows of a trial say together; those without values are no part of it."""
    compared = [(values["champion"], values["challenger"]) for values in windows if values]
    if signal in _SHARES:
        what, _ = _SHARES[signal]
        margin = settings.trial_share_margin
        counts = [((c[0], c[1]), (h[0], h[1])) for c, h in compared]
        check = share_check(signal, what, counts, margin, ALPHA)
        interval, verdict, why = check.interval, check.verdict, check.detail
    else:
        margin = settings.trial_nats_margin
        interval = always_valid_difference(compared, alpha=ALPHA, effect=margin)
        verdict = "inconclusive" if interval is None else not_above(interval, margin)
        texts = [sum(len(arms[side]) for arms in compared) for side in (0, 1)]
        why = f"{texts[1]} {_TEXTS[signal]} read by the challenger, {texts[0]} by the champion"
    if interval is None:
        return Said("not enough data", 0.0, margin, None, why)
    span = f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    return Said(_SAID[verdict], interval.estimate, margin, (interval.low, interval.high), f"{why}: {span}")
