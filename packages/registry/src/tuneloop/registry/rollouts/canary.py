"""Judging a canary against the champion's concurrent traffic; pure.

Every check has three verdicts; no data is inconclusive, never a pass. Every interval is an always-valid confidence
sequence, so a rollout may look as often as it likes: a challenger that is no worse fails each check with probability
`alpha` at most, over the whole rollout.

The arms are compared revision by revision, and the differences put together: the share rises while the load changes,
and pooled, a challenger that has most of its answers in the busier step would be blamed for the step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from tuneloop.registry.nouns import ChallengerSignal, Check, Interval, Noun, Verdict, as_tuple
from tuneloop.registry.statistics.sequences import drawn_variance, radius, stratum_shares
from tuneloop.registry.traffic import Opinion, Outcome


class Limits(Noun):
    """How much worse a challenger may be and still pass."""

    model_config = ConfigDict(strict=True)

    feedback_margin: float = Field(default=0.10, gt=0, le=1)  # of a score in [0, 1]
    error_margin: float = Field(default=0.05, gt=0, le=1)  # of the share of failed requests
    latency_ratio: float = Field(default=1.5, gt=1, allow_inf_nan=False)  # of the geometric mean of the total time
    # Of the geometric mean of the answers' tokens; None: not looked at (what is slower to no end shows in latency).
    token_ratio: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    guard_margin: float = Field(
        default=0.05, gt=0, le=1
    )  # of the share of answers that output guards find something in
    # Of the share of answers that users corrected; None: not looked at.
    correction_margin: float | None = Field(default=None, gt=0, le=1)
    # Of the monitor, which must have found them quiet on the trial; others count where it has judged them.
    signals: Annotated[tuple[ChallengerSignal, ...], BeforeValidator(as_tuple)] = ()
    alpha: float = Field(default=0.05, gt=0, lt=1)  # of each check, over all looks


# What a step of a plan may name to be judged by it, and which limit it then may give instead of the plan's.
CheckName = Literal["errors", "latency", "feedback", "tokens", "guards", "corrections", "quality"]
LIMIT_OF: dict[CheckName, str] = {
    "errors": "error_margin",
    "latency": "latency_ratio",
    "feedback": "feedback_margin",
    "tokens": "token_ratio",
    "guards": "guard_margin",
    "corrections": "correction_margin",
}


@dataclass(frozen=True)
class ArmSample:
    """What became of the requests that the split gave to one version, while both were in the route."""

    answered: int
    failed: int
    scores: tuple[float, ...]  # newest feedback score per request, in [0, 1]
    total_ms: tuple[float, ...]  # of answered requests
    tokens: tuple[int, ...] = ()  # of answers whose engine counted them
    guarded: int = 0  # answers in which the model's output guards found something
    corrected: int = 0  # answers that users corrected

    @property
    def asked(self) -> int:
        """Answered or failed."""
        return self.answered + self.failed

    @classmethod
    def of(
        cls,
        version: int,
        outcomes: Sequence[Outcome],
        opinions: Mapping[str, Sequence[Opinion]],
        guarded: Collection[str] = (),
    ) -> ArmSample:
        """The sample of a version from the outcomes of its model's requests, and opinions in order of time by request;
        `guarded` are those whose answers output guards found something in.

        What the version was assigned counts, not what it served: a request that another version had to answer is its
        failure. A request that pinned its version belongs to no arm; one the client spoilt or left is neither success
        nor failure.
        """
        mine = [outcome for outcome in outcomes if outcome.assigned_version == version and not outcome.is_spoilt]
        answered = [outcome for outcome in mine if outcome.is_answered]
        liked = ([said.liking for said in opinions.get(o.id, ()) if said.liking is not None] for o in answered)
        scores = [likings[-1] for likings in liked if likings]
        times_ms = tuple(o.total_ms for o in answered)
        tokens = tuple(o.completion_tokens for o in answered if o.completion_tokens)
        hits = sum(outcome.id in guarded for outcome in answered)
        corrected = sum(any(said.corrected for said in opinions.get(outcome.id, ())) for outcome in answered)
        return cls(len(answered), len(mine) - len(answered), tuple(scores), times_ms, tokens, hits, corrected)


Arms = tuple[ArmSample, ArmSample]  # champion and challenger under one revision
Count = tuple[int, int]  # of so many


def judge(
    revisions: Sequence[Arms], limits: Limits, *, step_answered: int, min_samples: int = 30, has_guards: bool = False
) -> tuple[Check, ...]:
    """Samples, errors, latency and feedback of the challenger against the champion; length and corrections where they
    have a limit, and what guards found where the model `has_guards` that look at answers.

    `step_answered` of the challenger's answers were given on the present step; those alone count as its samples.
    """
    enough: Verdict = "pass" if step_answered >= min_samples else "inconclusive"
    checks: tuple[Check, ...] = (
        Check(
            name="samples",
            verdict=enough,
            detail=f"{step_answered} answered on this step, at least {min_samples} asked for",
        ),
        _errors(revisions, limits),
        _latency(revisions, limits),
        _feedback(revisions, limits),
    )
    if limits.token_ratio is not None:
        checks = (*checks, _tokens(revisions, limits.token_ratio, limits.alpha))
    if has_guards:
        found = [((c.guarded, c.answered), (h.guarded, h.answered)) for c, h in revisions]
        checks = (*checks, share_check("guards", "had a find of the guards", found, limits.guard_margin, limits.alpha))
    if limits.correction_margin is not None:
        said = [((c.corrected, c.answered), (h.corrected, h.answered)) for c, h in revisions]
        checks = (*checks, share_check("corrections", "were corrected", said, limits.correction_margin, limits.alpha))
    return checks


def always_valid_difference(
    revisions: Sequence[tuple[Sequence[float], Sequence[float]]], *, alpha: float, effect: float
) -> Interval | None:
    """mean(after) − mean(before) with an interval that holds at every look.

    The sequence is that of `statistics.sequences`, with each revision a stratum. The values' variance within revisions
    is taken to be of the order of 0.25 until there are enough of them to say.

    Args:
        revisions: (before, after) of each; one where either has no values shows no difference and does not count.
        alpha: of all looks together.
        effect: in the values' unit.

    Returns:
        None with fewer than two values on a side.
    """
    compared = [(before, after) for before, after in revisions if before and after]
    befores, afters = [before for before, _ in compared], [after for _, after in compared]
    if min(sum(map(len, befores)), sum(map(len, afters))) < 2:
        return None
    variance0, variance1 = _variance(befores), _variance(afters)
    shares = stratum_shares([(len(before), len(after)) for before, after in compared])
    estimate = sum(s * (fmean(after) - fmean(before)) for s, before, after in zip(shares, befores, afters, strict=True))
    spread = sum(
        s**2 * (variance0 / len(before) + variance1 / len(after))
        for s, before, after in zip(shares, befores, afters, strict=True)
    )
    return _always_valid(estimate, spread, alpha=alpha, effect=effect)


def _always_valid(estimate: float, spread: float, *, alpha: float, effect: float) -> Interval:
    reach = radius(spread, alpha=alpha, effect=effect)
    return Interval(estimate=estimate, low=estimate - reach, high=estimate + reach, level=1 - alpha)


def _variance(revisions: Sequence[Sequence[float]]) -> float:
    """Of the values about their revision's mean."""
    squares = sum((value - mean) ** 2 for values in revisions for mean in [fmean(values)] for value in values)
    free = sum(len(values) - 1 for values in revisions)
    return drawn_variance(squares, float(free))


def _errors(revisions: Sequence[Arms], limits: Limits) -> Check:
    failed = [((c.failed, c.asked), (h.failed, h.asked)) for c, h in revisions]
    return share_check("errors", "failed", failed, limits.error_margin, limits.alpha)


def share_check(name: str, what: str, revisions: Sequence[tuple[Count, Count]], margin: float, alpha: float) -> Check:
    """How much larger the challenger's share of `what` is than the champion's."""
    compared = [counts for counts in revisions if all(among for _, among in counts)]
    if not compared:
        return Check(name=name, verdict="inconclusive", detail="no revision in which both have traffic")
    estimate = spread = 0.0
    for weight, counts in zip(stratum_shares([(c[1], h[1]) for c, h in compared]), compared, strict=True):
        # Agresti and Caffo (2000): one success and one failure added to each arm, over all revisions together, keeps
        # the coverage at small n.
        (p0, n0), (p1, n1) = (((some + weight) / (among + 2 * weight), among + 2 * weight) for some, among in counts)
        estimate += weight * (p1 - p0)
        spread += weight**2 * (p0 * (1 - p0) / n0 + p1 * (1 - p1) / n1)
    interval = _always_valid(estimate, spread, alpha=alpha, effect=margin)
    champion, challenger = (
        f"{sum(some for some, _ in arm)} of {sum(among for _, among in arm)}" for arm in zip(*compared, strict=True)
    )
    detail = f"{challenger} {what}, champion {champion}"
    return Check(name=name, verdict=not_above(interval, margin), detail=detail, interval=interval)


def _latency(revisions: Sequence[Arms], limits: Limits) -> Check:
    times = [(champion.total_ms, challenger.total_ms) for champion, challenger in revisions]
    return _ratio("latency", "total time", times, limits.latency_ratio, limits.alpha)


def _tokens(revisions: Sequence[Arms], limit: float, alpha: float) -> Check:
    counts = [(champion.tokens, challenger.tokens) for champion, challenger in revisions]
    return _ratio("tokens", "tokens of an answer", counts, limit, alpha)


def _ratio(
    name: str, what: str, values: Sequence[tuple[Sequence[float], Sequence[float]]], limit: float, alpha: float
) -> Check:
    logs = [(_logs(champion), _logs(challenger)) for champion, challenger in values]
    difference = always_valid_difference(logs, alpha=alpha, effect=math.log(limit))
    if difference is None:
        return Check(name=name, verdict="inconclusive", detail="no two answers of each in the same revisions")
    ratio = Interval(
        estimate=math.exp(difference.estimate),
        low=math.exp(difference.low),
        high=math.exp(difference.high),
        level=difference.level,
    )
    detail = f"{what} {ratio.estimate:.2f} × the champion's (geometric mean)"
    return Check(name=name, verdict=not_above(ratio, limit), detail=detail, interval=ratio)


def _feedback(revisions: Sequence[Arms], limits: Limits) -> Check:
    scores = [(c.scores, h.scores) for c, h in revisions if c.scores and h.scores]
    interval = always_valid_difference(scores, alpha=limits.alpha, effect=limits.feedback_margin)
    if interval is None:
        return Check(name="feedback", verdict="inconclusive", detail="no two scores of each in the same revisions")
    worse = Interval(estimate=-interval.estimate, low=-interval.high, high=-interval.low, level=interval.level)
    span = f"[{interval.low:+.3f}, {interval.high:+.3f}]"
    counts = f"{sum(len(after) for _, after in scores)} scores against {sum(len(before) for before, _ in scores)}"
    detail = f"score {interval.estimate:+.3f} {span}, {counts}, margin {limits.feedback_margin}"
    return Check(name="feedback", verdict=not_above(worse, limits.feedback_margin), detail=detail, interval=interval)


def _logs(values: Sequence[float]) -> list[float]:
    return [math.log(max(value, 0.1)) for value in values]


def not_above(interval: Interval, limit: float) -> Verdict:
    """Whether what the interval is of lies under the limit for sure, over it for sure, or neither."""
    if interval.high < limit:
        return "pass"
    return "fail" if interval.low > limit else "inconclusive"
