"""Mixing sources by weight: which rows of each are learned, how often, by which seed. Pure.

A weight is a share. The mixture is as long as all sources together; a source of weight w gets w / (sum of weights) of
it, rounded. Where that is less than it has, so many of its rows are drawn by the seed, each once; where it is more,
every row is repeated as often as it goes, and the rest is drawn. So no row stands a second time before all of its
source have stood once, and a small source under a large weight is repeated: how often is stated, because what is
learned many times over is learned by heart (above four times little is gained: Muennighoff et al., arXiv 2305.16264).

Without weights every row of every source stands once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MANY_TIMES = 4.0


@dataclass(frozen=True)
class Share:
    """What one source gives to the mixture."""

    rows: int  # it has
    taken: int  # places in the mixture
    weight: float | None

    @property
    def times(self) -> float:
        """How often each of its rows stands in the mixture, on average."""
        return self.taken / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        if self.weight is None:
            return f"{self.taken} rows"
        return f"{self.taken} of {self.rows} rows by weight {self.weight:g}, each {self.times:.2f} times"


def mix(
    sources: Sequence[NDArray[np.int64]], weights: Sequence[float | None], seed: int
) -> tuple[NDArray[np.int64], tuple[Share, ...]]:
    """The mixture as row numbers, source after source, and each source's share.

    Args:
        sources: row numbers of each source.
        weights: one each, all or none of them given.
        seed: of the draws.
    """
    if any(weight is None for weight in weights):
        taken = [len(rows) for rows in sources]
        return _joined(sources), tuple(Share(n, n, None) for n in taken)
    total = sum(len(rows) for rows in sources)
    given = [float(weight or 0.0) if len(rows) else 0.0 for rows, weight in zip(sources, weights, strict=True)]
    wanted = _rounded([total * weight / (sum(given) or 1.0) for weight in given])
    draw = np.random.default_rng(seed)
    parts = []
    for rows, count in zip(sources, wanted, strict=True):
        whole, rest = divmod(count, len(rows)) if len(rows) else (0, 0)
        drawn = np.sort(draw.permutation(len(rows))[:rest])
        parts.append(np.concatenate([np.tile(rows, whole), rows[drawn]]))
    shares = tuple(Share(len(r), n, w) for r, n, w in zip(sources, wanted, weights, strict=True))
    return _joined(parts), shares


def _rounded(shares: Sequence[float]) -> list[int]:
    """Whole numbers with the same sum: the largest remainders are rounded up."""
    whole = [int(share) for share in shares]
    missing = round(sum(shares)) - sum(whole)
    for index in sorted(range(len(shares)), key=lambda i: (whole[i] - shares[i], i))[:missing]:
        whole[index] += 1
    return whole


def _joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
