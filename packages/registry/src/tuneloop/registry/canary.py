"""Judging a canary against the champion's concurrent traffic; pure.

Every check has three verdicts; no data is inconclusive, never a pass. The feedback interval is an always-valid confidence
sequence, so a rollout may look as often as it likes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from tuneloop.registry.nouns import Check, Feedback, Interval, RequestRecord

Verdict = Literal["pass", "fail", "inconclusive"]
CLIENT_LEFT = 499
SERVER_FAULT = 500


@dataclass(frozen=True)
class Limits:
    """How much worse a challenger may be and still pass."""

    min_samples: int = 30  # answered requests of the challenger
    feedback_margin: float = 0.10  # of a score in [0, 1]
    error_margin: float = 0.05  # of the share of failed requests
    latency_ratio: float = 1.5  # of the mean total time
    alpha: float = 0.05


@dataclass(frozen=True)
class ArmSample:
    """What one version did while both were in the route."""

    answered: int
    failed: int
    scores: tuple[float, ...]  # newest feedback score per request, in [0, 1]
    total_ms: tuple[float, ...]  # of answered requests

    @classmethod
    def of(cls, records: Sequence[RequestRecord], feedback: Mapping[str, Sequence[Feedback]]) -> ArmSample:
        """The sample of records served by one version; a client that left is neither success nor failure."""
        counted = [record for record in records if record.status != CLIENT_LEFT]
        answered = [record for record in counted if record.status < SERVER_FAULT and record.error is None]
        scores = [score for record in answered if (score := _score(feedback.get(record.id, ()))) is not None]
        return cls(
            len(answered), len(counted) - len(answered), tuple(scores), tuple(record.total_ms for record in answered)
        )


def judge(champion: ArmSample, challenger: ArmSample, limits: Limits) -> tuple[Check, ...]:
    """Samples, errors, latency and feedback of the challenger against the champion."""
    enough: Verdict = "pass" if challenger.answered >= limits.min_samples else "inconclusive"
    return (
        Check(
            name="samples",
            verdict=enough,
            detail=f"{challenger.answered} answered, at least {limits.min_samples} asked for",
        ),
        _errors(champion, challenger, limits),
        _latency(champion, challenger, limits),
        _feedback(champion, challenger, limits),
    )


def always_valid_difference(
    before: Sequence[float], after: Sequence[float], *, alpha: float, effect: float
) -> Interval | None:
    """mean(after) − mean(before) with an interval that holds at every look; None with fewer than two values on a side.

    The mixture sequential probability ratio test of Johari, Koomen, Pekelis and Walsh, "Always Valid Inference" (2015/2022),
    normal mixture with standard deviation `effect` (the difference one cares about).
    """
    if len(before) < 2 or len(after) < 2:
        return None
    spread = variance(before) / len(before) + variance(after) / len(after)
    estimate = fmean(after) - fmean(before)
    if spread == 0.0:  # constant scores: the mixture's limit is a point, which would claim certainty from two samples
        spread = 0.25 / len(before) + 0.25 / len(after)
    mixed = spread + effect**2
    radius = math.sqrt(spread * mixed / effect**2 * (2 * math.log(1 / alpha) + math.log(mixed / spread)))
    return Interval(estimate=estimate, low=estimate - radius, high=estimate + radius, level=1 - alpha)


def _score(items: Sequence[Feedback]) -> float | None:
    for item in reversed(items):
        if item.score is not None:
            return item.score
        if item.thumb is not None:
            return 1.0 if item.thumb == "up" else 0.0
    return None


def _errors(champion: ArmSample, challenger: ArmSample, limits: Limits) -> Check:
    n0, n1 = champion.answered + champion.failed, challenger.answered + challenger.failed
    if n0 == 0 or n1 == 0:
        return Check(name="errors", verdict="inconclusive", detail="one arm has no traffic")
    # Agresti and Caffo (2000): one success and one failure added to each arm keeps the coverage at small n.
    p0, p1 = (champion.failed + 1) / (n0 + 2), (challenger.failed + 1) / (n1 + 2)
    radius = 1.96 * math.sqrt(p0 * (1 - p0) / (n0 + 2) + p1 * (1 - p1) / (n1 + 2))
    interval = Interval(estimate=p1 - p0, low=p1 - p0 - radius, high=p1 - p0 + radius)
    detail = f"{challenger.failed} of {n1} failed, champion {champion.failed} of {n0}"
    return Check(name="errors", verdict=_not_above(interval, limits.error_margin), detail=detail, interval=interval)


def _latency(champion: ArmSample, challenger: ArmSample, limits: Limits) -> Check:
    if len(champion.total_ms) < 2 or len(challenger.total_ms) < 2:
        return Check(name="latency", verdict="inconclusive", detail="one arm has no answers")
    logs0, logs1 = (
        [math.log(max(ms, 0.1)) for ms in champion.total_ms],
        [math.log(max(ms, 0.1)) for ms in challenger.total_ms],
    )
    estimate = fmean(logs1) - fmean(logs0)
    radius = 1.96 * math.sqrt(variance(logs0) / len(logs0) + variance(logs1) / len(logs1))
    ratio = Interval(estimate=math.exp(estimate), low=math.exp(estimate - radius), high=math.exp(estimate + radius))
    detail = f"total time {ratio.estimate:.2f} × the champion's (geometric mean)"
    return Check(name="latency", verdict=_not_above(ratio, limits.latency_ratio), detail=detail, interval=ratio)


def _feedback(champion: ArmSample, challenger: ArmSample, limits: Limits) -> Check:
    interval = always_valid_difference(
        champion.scores, challenger.scores, alpha=limits.alpha, effect=limits.feedback_margin
    )
    counts = f"{len(challenger.scores)} scores against {len(champion.scores)}"
    if interval is None:
        return Check(name="feedback", verdict="inconclusive", detail=counts)
    worse = Interval(estimate=-interval.estimate, low=-interval.high, high=-interval.low, level=interval.level)
    detail = f"score {interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}], {counts}, margin {limits.feedback_margin}"
    return Check(name="feedback", verdict=_not_above(worse, limits.feedback_margin), detail=detail, interval=interval)


def _not_above(interval: Interval, limit: float) -> Verdict:
    if interval.high < limit:
        return "pass"
    return "fail" if interval.low > limit else "inconclusive"
