"""Intervals in closed form, of a share and of a quantile; neither assumes how the values are distributed. Pure.

Without numpy and SciPy, which what serves need not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma, log, log1p, sqrt
from statistics import NormalDist

from tuneloop.registry.nouns import Interval


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """A share with its score interval (Wilson 1927), which holds at few trials and at 0 and 1 as well.

    Args:
        successes: of the trials.
        trials: at least one.
        level: of confidence, both sides together.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, slack = successes / trials, z**2 / trials
    middle, radius = share + slack / 2, z * sqrt(share * (1 - share) / trials + slack / (4 * trials))
    low, high = ((middle + sign * radius) / (1 + slack) for sign in (-1, 1))
    return Interval(estimate=share, low=max(0.0, low), high=min(1.0, high), level=level)


def quantile_interval(values: Sequence[float], q: float, level: float) -> tuple[float, float | None, float | None]:
    """(estimate, low, high) of a quantile by order statistics, whatever the distribution; None where n is too small.

    The number of values below the quantile is binomial, so x₍ₗ₎ and x₍ᵤ₎ bound it with the binomial's tails (Conover,
    Practical Nonparametric Statistics, 3.2).
    """
    ordered, n, tail = sorted(values), len(values), (1 - level) / 2
    low: float | None = None
    high: float | None = None
    fewer = 0.0  # P(fewer than k of the values lie below the quantile)
    for k, value in enumerate(ordered, start=1):
        fewer += _binomial(k - 1, n, q)
        if fewer <= tail:
            low = value
        if fewer >= 1 - tail:
            high = value
            break
    return ordered[min(n - 1, int(q * n))], low, high


def _binomial(k: int, n: int, p: float) -> float:
    return exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p))
