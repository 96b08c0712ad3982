"""What units had contributed to a metric by a time, arm by arm and stratum by stratum; pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneloop.registry.experiments.declaration import Metric
from tuneloop.registry.experiments.effect import Floats, Indices, Part, influences, quantile_part, ratio_part
from tuneloop.registry.experiments.gather import Evidence, Stream
from tuneloop.registry.statistics.sequences import stratum_shares

Bools = NDArray[np.bool_]
_LEAST_IN_STRATUM = 20  # of each arm; a stratum with fewer shows no difference


def arrivals_of(stream: Stream) -> Floats:
    """When each unit first had the metric, in order of time."""
    _, first = np.unique(stream.unit, return_index=True)
    return np.sort(stream.at_s[first])


@dataclass(frozen=True)
class _Known:
    """What units had contributed by a time, and the (control, treatment) units of each stratum with enough of both."""

    unit: Indices  # of each contribution
    value: Floats
    y: Floats  # numerator of each unit; of a quantile's unit, its mean
    x: Floats
    sides: tuple[tuple[Bools, Bools], ...]


def _known(metric: Metric, stream: Stream, evidence: Evidence, arm: int, until_s: float) -> _Known:
    known = int(np.searchsorted(stream.at_s, until_s, side="right"))
    unit, value, count = stream.unit[:known], stream.value[:known], stream.count[:known]
    units = len(evidence.arm)
    there = np.bincount(unit, minlength=units) > 0
    y, x = (np.bincount(unit, sums, minlength=units).astype(np.float64) for sums in (value, count))
    if metric.kind != "ratio":
        y, x = np.divide(y, x, out=np.zeros(units), where=x > 0), np.ones(units)
    sides: list[tuple[Bools, Bools]] = []
    for stratum in range(len(evidence.strata)):
        before, after = (there & (evidence.stratum == stratum) & (evidence.arm == one) for one in (0, arm))
        if min(before.sum(), after.sum()) >= _LEAST_IN_STRATUM and x[before].sum() > 0 and x[after].sum() > 0:
            sides.append((before, after))
    return _Known(unit, value, y, x, tuple(sides))


def parts_at(
    metric: Metric, stream: Stream, evidence: Evidence, arm: int, until_s: float, *, adjusted: bool
) -> list[tuple[Part, Part]]:
    """(control, treatment) of each stratum that has enough units of both, from what was known by then."""
    known, found = _known(metric, stream, evidence, arm, until_s), list[tuple[Part, Part]]()
    covariate = evidence.covariate if adjusted else np.zeros(len(evidence.arm))
    for sides in known.sides:
        if metric.q is not None:
            picked = [side[known.unit] for side in sides]
            before, after = (quantile_part(known.value[here], known.unit[here], metric.q) for here in picked)
        else:
            before, after = (ratio_part(known.y[side], known.x[side], covariate[side]) for side in sides)
        found.append((before, after))
    return found


def pulls_at(metric: Metric, stream: Stream, evidence: Evidence, arm: int, until_s: float, slope: float) -> Floats:
    """By how much each unit has moved the estimate by then; of a quantile, but for a factor.

    Two looks are as alike as these are: where units come back, the later one holds more of each.
    """
    known, pulls = _known(metric, stream, evidence, arm, until_s), np.zeros(len(evidence.arm))
    shares = stratum_shares([(float(before.sum()), float(after.sum())) for before, after in known.sides])
    for share, (before, after) in zip(shares, known.sides, strict=True):
        for side, sign in ((before, -1.0), (after, 1.0)):
            y, x = known.y[side], known.x[side]
            if metric.q is not None:
                here = side[known.unit]
                below = known.value[here] <= np.quantile(known.value[here], metric.q)
                y, x = (
                    np.bincount(known.unit[here], part, minlength=len(pulls)).astype(np.float64)[side]
                    for part in (below, np.ones(len(below)))
                )
            pulls[side] = sign * share * influences(y, x, evidence.covariate[side], slope)
    return pulls
