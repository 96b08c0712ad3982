"""How many units an experiment needs, and how long they take to come; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from scipy.optimize import brentq
from scipy.stats import norm

from tuneloop.registry.statistics.sequences import radius

_MOST = 1e12  # units; more than there are people


def unit_spread(variances: tuple[float, float], shares: tuple[float, float]) -> float:
    """Variance of a difference of means, times the units of the whole experiment: (control, treatment)."""
    return variances[0] / shares[0] + variances[1] / shares[1]


def fixed_units(spread: float, effect: float, *, alpha: float, power: float) -> int:
    """Units, over all arms, that a single look at the end needs: the two-sided z-test."""
    return math.ceil(float(spread * ((norm.isf(alpha / 2) + norm.isf(1 - power)) / effect) ** 2))


def fixed_power(spread: float, effect: float, units: float, *, alpha: float) -> float:
    """The power of a single look at that many units."""
    drift, z = abs(effect) / math.sqrt(spread / units), norm.isf(alpha / 2)
    return float(norm.sf(z - drift) + norm.cdf(-z - drift))


def sequence_units(spread: float, effect: float, *, alpha: float, power: float) -> int:
    """Units by which an always-valid sequence has decided with this power, at the latest.

    Counted is the crossing at exactly that look; the earlier ones come on top.
    """

    def missing(units: float) -> float:
        error = spread / units
        return effect - float(norm.isf(1 - power)) * math.sqrt(error) - radius(error, alpha=alpha, effect=effect)

    fewest = fixed_units(spread, effect, alpha=alpha, power=power) / 2
    if missing(fewest) >= 0:  # an effect so large that a unit or two would show it
        return math.ceil(fewest)
    if missing(_MOST) <= 0:  # so small that all people would not
        return int(_MOST)
    return math.ceil(float(brentq(missing, fewest, _MOST, rtol=1e-9)))


def spans_until(units: float, seen: Sequence[int]) -> float | None:
    """How many spans of time pass until so many units have come.

    Units that come back are counted once: `seen` says how many different ones had come by the end of each span so far,
    and beyond those they go on coming as in their second half. None where hardly any come.
    """
    curve = [0, *seen]
    for span, (before, after) in enumerate(pairwise(curve)):
        if after >= units:
            return span + (units - before) / (after - before)
    half = len(curve) // 2
    rate = (curve[-1] - curve[half]) / (len(curve) - 1 - half) if len(curve) > 1 else 0.0
    return len(seen) + (units - curve[-1]) / rate if rate > 0 else None
