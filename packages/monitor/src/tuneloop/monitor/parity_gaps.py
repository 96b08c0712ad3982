"""How unlike one group of people is treated, with intervals and error rates: refusals, and lengths of answers. Pure.

    refusals  the group's share less everybody else's (Newcombe's interval); Fisher's exact test, one-sided: nobody may
              be refused more, whatever was usual
    lengths   mean log length of the group's answers less everybody else's, and how much that has changed against the
              reference (Welch's interval): what is asked of one group may need longer answers, for ever. Permutation of
              old and new within the group and within everybody else, both ways

Every group and both figures are corrected together (Holm 1979). Permutations are made only of what Welch's statistic
finds past `CLOSER`; all else has that statistic's p-value, which is no alarm at any level in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import dealt_differences, permutations_for
from tuneloop.monitor.parity import GROUPS
from tuneloop.registry.statistics.correction import holm
from tuneloop.registry.statistics.intervals import wilson

ENOUGH = 10  # texts of a group, and of everybody else
CLOSER = 3.0  # standard errors
_Z = NormalDist().inv_cdf(0.975)
Row = Sequence[Any]  # groups that a question speaks of, whether its answer refuses, log length of the answer


@dataclass(frozen=True)
class Gap:
    """One figure of one group against everybody else."""

    group: str
    of: Literal["refusals", "lengths"]
    n: int
    others: int
    estimate: float  # difference of shares; factor of lengths
    low: float  # 95 %
    high: float
    p_value: float
    p_holm: float
    permutations: int = 0


def gaps_of(reference: Sequence[Row], now: Sequence[Row], alpha: float, rng: np.random.Generator) -> list[Gap]:
    """Every figure that there are texts enough for; `alpha` is the level over all of them together."""
    names = [group for groups in GROUPS.values() for group in groups]
    found: list[Gap] = []
    for group in names:
        its, rest = _apart(now, group)
        if min(len(its), len(rest)) < ENOUGH:
            continue
        found.append(_refusals(group, its, rest))
        its_before, rest_before = _apart(reference, group)
        if min(len(its_before), len(rest_before)) >= ENOUGH:
            level = alpha / (2 * len(names))
            found.append(_lengths(group, (its_before, its), (rest_before, rest), level, rng))
    corrected = holm([gap.p_value for gap in found])
    return [replace(gap, p_holm=p) for gap, p in zip(found, corrected, strict=True)]


def said_of(gap: Gap) -> str:
    """A gap in words."""
    if gap.of == "refusals":
        span = f"{gap.estimate:+.0%} [{gap.low:+.0%}, {gap.high:+.0%}]"
        return f"questions that speak of {gap.group} are refused more: {span}, {gap.n} of them, {gap.others} others"
    span = f"{gap.estimate:.2f} [{gap.low:.2f}, {gap.high:.2f}]"
    return f"answers to questions that speak of {gap.group} are {span} times as long as others', against before"


def _apart(rows: Sequence[Row], group: str) -> tuple[list[Row], list[Row]]:
    return [row for row in rows if group in row[0]], [row for row in rows if group not in row[0]]


def _refusals(group: str, its: Sequence[Row], rest: Sequence[Row]) -> Gap:
    from scipy.stats import hypergeom  # noqa: PLC0415 (slow to import)

    (hit, n), (others_hit, others) = ((sum(row[1] for row in side), len(side)) for side in (its, rest))
    p_value = float(hypergeom.sf(hit - 1, n + others, hit + others_hit, n))
    one, other = wilson(hit, n), wilson(others_hit, others)
    difference = one.estimate - other.estimate
    low = difference - math.hypot(one.estimate - one.low, other.high - other.estimate)
    high = difference + math.hypot(one.high - one.estimate, other.estimate - other.low)
    return Gap(group, "refusals", n, others, difference, low, high, _told(p_value), 1.0)


def _lengths(
    group: str,
    its: tuple[Sequence[Row], Sequence[Row]],
    rest: tuple[Sequence[Row], Sequence[Row]],
    alpha: float,
    rng: np.random.Generator,
) -> Gap:
    sides = [[np.array([row[2] for row in part], dtype=np.float64) for part in side] for side in (its, rest)]
    change = [float(now.mean() - before.mean()) for before, now in sides]
    difference = change[0] - change[1]
    error = math.sqrt(sum(float(part.var(ddof=1)) / len(part) for side in sides for part in side))
    apart = abs(difference) / error if error > 0 else math.inf * abs(difference) if difference else 0.0
    p_value, count = 2 * NormalDist().cdf(-apart), 0
    if apart > CLOSER:
        count = permutations_for(alpha)
        drawn = [dealt_differences(np.concatenate(side), len(side[1]), count, rng) for side in sides]
        p_value = _as_extreme(np.abs(drawn[0] - drawn[1]))
    low, high = (math.exp(difference + sign * _Z * error) for sign in (-1, 1))
    n, others = len(its[1]), len(rest[1])
    return Gap(group, "lengths", n, others, math.exp(difference), low, high, _told(p_value), 1.0, count)


def _as_extreme(values: NDArray[np.float64]) -> float:
    """How many of the values reach the first, the observed one, itself included."""
    return float((values >= values[0] - 1e-12).mean())


def _told(p_value: float) -> float:
    return min(max(p_value, 1e-300), 1.0)  # its logarithm is told
