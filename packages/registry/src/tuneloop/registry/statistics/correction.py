"""P-values of several tests, corrected together. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p-values in the order given (Holm 1979): the family-wise error is kept however they depend."""
    order, worst, found = sorted(range(len(p_values)), key=lambda i: p_values[i]), 0.0, [0.0] * len(p_values)
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = worst
    return found
