"""Whether length tells which answer of a preference is the chosen one: a reward learned from such pairs rewards length.

The share of pairs whose chosen answer is the longer one, among those that differ in length, with Wilson's interval
(1927), by words. One half is no bias; far above it a model learns to say more, far below it to say less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneloop.registry.statistics.intervals import wilson
from tuneloop.train.data.quality.look import Columns


@dataclass(frozen=True)
class LengthBias:
    """`longer` of `pairs` choose the longer answer; the share lies between `low` and `high` with 95 %."""

    longer: int
    pairs: int  # that differ in length
    low: float
    high: float
    chosen_words: float  # at the median
    rejected_words: float

    @property
    def share(self) -> float:
        """Of the pairs that differ in length, those whose chosen answer is the longer one."""
        return self.longer / self.pairs

    def __str__(self) -> str:
        return (
            f"the longer answer is chosen in {self.share:.0%} of {self.pairs} ({self.low:.0%} to {self.high:.0%}); "
            f"{self.chosen_words:g} words against {self.rejected_words:g}"
        )


def length_bias(columns: Columns, kept: NDArray[np.bool_]) -> LengthBias | None:
    """Of the preferences that are kept; None where no two answers differ in length."""
    chosen, rejected = columns.answer_words, columns.rejected_words
    counted = kept & columns.preferred
    differ = counted & (chosen != rejected)
    pairs, longer = int(differ.sum()), int((differ & (chosen > rejected)).sum())
    if not pairs:
        return None
    found = wilson(longer, pairs)
    return LengthBias(
        longer, pairs, found.low, found.high, float(np.median(chosen[counted])), float(np.median(rejected[counted]))
    )
