"""Looking a planned number of times: Lan and DeMets' (1983) spending of alpha, O'Brien–Fleming type; pure.

How much is spent follows the planned units; how alike two looks are is another matter, and measured: units that come
back make a later look less like the one before than their numbers say (two time scales: Lan and DeMets, 1989).

Boundaries come from the recursive integration of Armitage, McPherson and Rowe (1969) over Gauss–Legendre nodes; exact
to about 1e-6, a few milliseconds for ten looks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

Floats = NDArray[np.float64]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(257)
# Of alpha: the rest is for what a few hundred units miss of the normal distribution, a fiftieth of it as measured by
# `benchmarks/experiment_validity.py`.
SPENDABLE = 0.95
_LEAST_ALIKE, _MOST_ALIKE = 1e-4, 0.99  # beyond, the integration is not exact; fewer alike is the careful side
_FARTHEST = 12.0  # standard errors; beyond lies less than 1e-32


def spent(fraction: float, alpha: float) -> float:
    """How much of a two-sided `alpha` may be gone when this fraction of the units is in."""
    return float(4 * norm.sf(norm.isf(alpha / 4) / np.sqrt(fraction)))


def boundaries(fractions: Sequence[float], alpha: float, alike: Sequence[float] | None = None) -> list[float]:
    """The |z| that decides at each look, for looks at these fractions of the planned units (rising, the last is 1).

    Args:
        fractions: of the planned units; they say how much of alpha each look spends.
        alpha: two-sided, over all looks.
        alike: the squared correlation of each look but the first with the one before; None: that of units that come
            once, the ratio of the two fractions.
    """
    found: list[float] = []
    density, places, before, gone = np.ones(1), np.zeros(1), 0.0, 0.0
    for fraction, information in zip(fractions, _information(fractions, alike), strict=True):
        step = np.sqrt(information - before)
        budget = spent(fraction, alpha) - gone
        edge = _edge(density, places, float(step), budget, _FARTHEST * float(np.sqrt(information)))
        found.append(edge / float(np.sqrt(information)))
        gone += budget
        density, places = _inside(density, places, edge, float(step), 0.0)
        before = information
    return found


def _information(fractions: Sequence[float], alike: Sequence[float] | None) -> Sequence[float]:
    """The time of a Brownian motion whose values at these times are as alike as the looks."""
    if alike is None:
        return fractions
    times = list(fractions[:1])
    for squared in alike:
        times.append(times[-1] / min(max(squared, _LEAST_ALIKE), _MOST_ALIKE))
    return times


def _edge(density: Floats, places: Floats, step: float, budget: float, farthest: float) -> float:
    """Where as much is spent as the budget allows; a budget too small for any place spends next to nothing."""

    def overspent(edge: float) -> float:
        return float((density * _outside(places, edge, step, 0.0)).sum()) - budget

    return farthest if overspent(farthest) >= 0 else float(brentq(overspent, 1e-9, farthest, xtol=1e-10))


def crossings(fractions: Sequence[float], z: Sequence[float], drift: float) -> list[float]:
    """The probability of crossing first at each look, where the last look's z has the mean `drift`."""
    found: list[float] = []
    density, places, before = np.ones(1), np.zeros(1), 0.0
    for fraction, bound in zip(fractions, z, strict=True):
        step, moved = float(np.sqrt(fraction - before)), drift * (fraction - before)
        edge = bound * float(np.sqrt(fraction))
        found.append(float((density * _outside(places, edge, step, moved)).sum()))
        density, places = _inside(density, places, edge, step, moved)
        before = fraction
    return found


def inflation(fractions: Sequence[float], alpha: float, power: float) -> float:
    """How many times a fixed test's units the looks need for the same power, where units come once."""
    z = boundaries(fractions, SPENDABLE * alpha)
    fixed = norm.isf(alpha / 2) + norm.isf(1 - power)
    drift = brentq(lambda d: sum(crossings(fractions, z, d)) - power, 0.5 * fixed, 3 * fixed)
    return float((drift / fixed) ** 2)


def _outside(places: Floats, edge: float, step: float, moved: float) -> Floats:
    """From each place, the probability of a step beyond ±edge."""
    return np.asarray(norm.sf((edge - places - moved) / step) + norm.cdf((-edge - places - moved) / step))


def _inside(density: Floats, places: Floats, edge: float, step: float, moved: float) -> tuple[Floats, Floats]:
    """The (weighted) density of having stayed within the edges so far, and where it is taken."""
    nodes = edge * _NODES
    kernel = norm.pdf((nodes[:, None] - places[None, :] - moved) / step) / step
    return edge * _WEIGHTS * (kernel @ density), nodes
