"""Always-valid differences: intervals that hold at every look, however often one looks; pure, and without numpy.

A difference with the standard error √spread gets the normal-mixture sequence: the mixture sequential probability ratio
test of Johari, Koomen, Pekelis and Walsh, "Always Valid Inference" (2015/2022), which is also the asymptotic confidence
sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory" (2024). `effect`, the
difference one cares about, is the mixture's standard deviation: the sequence is then narrowest about where a test of a
fixed size would have its 80 % power (ratio τ²/V of 7.85 there, 8.2 at the optimum for α = 0.05).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Number = TypeVar("Number", float, "NDArray[np.float64]")  # one experiment, or many side by side
# The plug-in variance of a few values may be near nothing by chance, which would claim certainty from two samples. It
# is drawn towards 0.25 (the most a score in [0, 1] can have; a factor of 1.6 on a latency) by four imagined values:
# measured, the share of A/A streams with any false look falls from up to 44 % to below 5 %.
PRIOR_COUNT = 4
PRIOR_VARIANCE = 0.25


def drawn_variance(squares: Number, free: Number) -> Number:
    """The variance of values in [0, 1], or of their logarithms, of which few may have been seen.

    Args:
        squares: sum of the squares about the mean.
        free: degrees of freedom in them.
    """
    return (squares + PRIOR_COUNT * PRIOR_VARIANCE) / (free + PRIOR_COUNT)


def stratum_shares(counts: Sequence[tuple[Number, Number]]) -> list[Number]:
    """What each stratum's difference weighs, n₀n₁/(n₀+n₁) as Cochran (1954) has it; 1 together."""
    weights = [n0 * n1 / (n0 + n1) for n0, n1 in counts]
    total = sum(weights[1:], start=weights[0])
    return [weight / total for weight in weights]


def radius(spread: float, *, alpha: float, effect: float) -> float:
    """Half the width of the interval that holds at every look with probability 1 − `alpha`.

    Args:
        spread: variance of the estimated difference.
        alpha: of all looks together.
        effect: in the values' unit.
    """
    mixed = spread + effect**2
    return math.sqrt(spread * mixed / effect**2 * (2 * math.log(1 / alpha) + math.log(mixed / spread)))


def p_value(distance: float, spread: float, *, effect: float) -> float:
    """The smallest `alpha` at which the interval leaves out what lies `distance` from the estimate; valid at any look.

    It falls and rises with the data; the smallest over all looks is valid too.
    """
    mixed = spread + effect**2
    exponent = distance**2 * effect**2 / (2 * spread * mixed)
    return min(1.0, math.sqrt(mixed / spread) * math.exp(-exponent))
