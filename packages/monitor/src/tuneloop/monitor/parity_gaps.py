"""How unlike one group of people is treated, with intervals and error rates: refusals, and lengths of answers. Pure.

    refusals  the group's share less everybody else's (Newcombe's interval); Fisher's exact test, one-sided: nobody may
              be refused more, whatever was usual
    lengths   mean log length of the group's answers less everybody else's, and how much that has changed against the
              reference (Welch's interval): what is asked of one group may need longer answers, for ever. Permutation of
              old and new within the group and within everybody else, both ways

What a person has accepted takes the reference's place, for both figures: refusals are then no alarm until the gap is
larger, by permutation too. Every group and both figures are corrected together (Holm 1979).

Permutations are made only of what Welch's statistic finds past `CLOSER`; all else has that statistic's p-value, which
is no alarm at any level in use. They end with the tenth deal that is as extreme (Besag and Clifford 1991), exactly
valid, so that only what is rare costs many, and never more than MOST_DEALS: below a level of 1 in MOST_DEALS a
change of lengths, or of an accepted gap, is missed, and nothing is told that is not so.
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
MOST_DEALS = 500_000  # about 10 µs each, with 500 answers
_AT_ONCE, _ENOUGH_AS_EXTREME = 20_000, 10  # deals
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
    accepted: bool = False  # whether it is held against what a person has accepted


def gaps_of(
    reference: Sequence[Row],
    now: Sequence[Row],
    alpha: float,
    rng: np.random.Generator,
    accepted: Sequence[Row] = (),
) -> list[Gap]:
    """Every figure that there are texts enough for.

    Args:
        reference: what is usual.
        now: the newest windows together.
        alpha: the level over all figures together.
        rng: source of the permutations.
        accepted: of when a person last accepted a gap, none of them in `now`.
    """
    names = [group for groups in GROUPS.values() for group in groups]
    found: list[Gap] = []
    for group in names:
        its, rest = _apart(now, group)
        if min(len(its), len(rest)) < ENOUGH:
            continue
        level = alpha / (2 * len(names))
        its_before, rest_before = _apart(accepted, group)
        known = min(len(its_before), len(rest_before)) >= ENOUGH
        if known:
            found.append(_change(group, "refusals", (its_before, its), (rest_before, rest), level, rng))
        else:
            found.append(_refusals(group, its, rest))
            its_before, rest_before = _apart(reference, group)
        if min(len(its_before), len(rest_before)) >= ENOUGH:
            lengths = _change(group, "lengths", (its_before, its), (rest_before, rest), level, rng)
            found.append(replace(lengths, accepted=known))
    corrected = holm([gap.p_value for gap in found])
    return [replace(gap, p_holm=p) for gap, p in zip(found, corrected, strict=True)]


def said_of(gap: Gap) -> str:
    """A gap in words."""
    if gap.of == "refusals":
        span = f"{gap.estimate:+.0%} [{gap.low:+.0%}, {gap.high:+.0%}]"
        more = "refused more than was accepted" if gap.accepted else "refused more"
        return f"questions that speak of {gap.group} are {more}: {span}, {gap.n} of them, {gap.others} others"
    span = f"{gap.estimate:.2f} [{gap.low:.2f}, {gap.high:.2f}]"
    before = "what was accepted" if gap.accepted else "before"
    return f"answers to questions that speak of {gap.group} are {span} times as long as others', against {before}"


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


def _change(
    group: str,
    of: Literal["refusals", "lengths"],
    its: tuple[Sequence[Row], Sequence[Row]],
    rest: tuple[Sequence[Row], Sequence[Row]],
    level: float,
    rng: np.random.Generator,
) -> Gap:
    """How a group's gap has changed between two samples; refusals may become fewer, lengths change neither way."""
    column, both_ways = (1, False) if of == "refusals" else (2, True)
    sides = [[np.array([row[column] for row in part], dtype=np.float64) for part in side] for side in (its, rest)]
    change = [float(now.mean() - before.mean()) for before, now in sides]
    difference = change[0] - change[1]
    error = math.sqrt(sum(float(part.var(ddof=1)) / len(part) for side in sides for part in side))
    counted = abs(difference) if both_ways else max(difference, 0.0)
    apart = counted / error if error > 0 else math.inf * counted if counted else 0.0
    p_value, count = 2 * NormalDist().cdf(-apart), 0
    if apart > CLOSER:
        p_value, count = _dealt(sides, min(permutations_for(level), MOST_DEALS), rng, both_ways=both_ways)
    estimate, low, high = (difference + sign * _Z * error for sign in (0, -1, 1))
    if of == "lengths":
        estimate, low, high = math.exp(estimate), math.exp(low), math.exp(high)
    return Gap(group, of, len(its[1]), len(rest[1]), estimate, low, high, _told(p_value), 1.0, count, accepted=True)


def _dealt(
    sides: Sequence[Sequence[NDArray[np.float64]]],
    most: int,
    rng: np.random.Generator,
    *,
    both_ways: bool,
) -> tuple[float, int]:
    """The p-value of the observed change among deals of old and new within either side, and how many were dealt."""
    as_extreme = dealt = 0
    while dealt < most:
        some = min(_AT_ONCE, most - dealt)
        drawn = [dealt_differences(np.concatenate(side), len(side[1]), some, rng) for side in sides]
        values = np.abs(drawn[0] - drawn[1]) if both_ways else drawn[0] - drawn[1]
        hits = np.flatnonzero(values[1:] >= values[0] - 1e-12)
        if as_extreme + len(hits) >= _ENOUGH_AS_EXTREME:
            last = dealt + int(hits[_ENOUGH_AS_EXTREME - as_extreme - 1]) + 1
            return _ENOUGH_AS_EXTREME / last, last
        as_extreme, dealt = as_extreme + len(hits), dealt + some
    return (as_extreme + 1) / (most + 1), most


def _told(p_value: float) -> float:
    return min(max(p_value, 1e-300), 1.0)  # its logarithm is told
