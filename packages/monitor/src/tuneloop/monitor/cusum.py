"""A change of level in a stream of numbers, seen record by record, with an exact mean run length. Pure; randomness is
injected.

Each value is turned into its randomised rank among all that came before it, the reference first. While values are
independent and alike, those ranks are independent and uniform *exactly*, whatever the distribution, ties included and
however small the reference: nothing is estimated, so nothing is estimated wrongly (McDonald, "A CUSUM procedure based
on sequential ranks", 1990; Vovk et al., "Algorithmic Learning in a Random World", 2005, theorem 8.2). Their normal
scores go through Page's CUSUM (1954) on either side, whose mean run length for standard normal scores solves an
integral equation; the threshold is where the solution is the run length asked for. Memory is bounded: values are
counted in at most 8,193 cells between the reference's own, ties inside a cell are broken at random, which keeps the
law above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DESIGN_SHIFT = 0.5  # standard deviations: the change it is quickest at, for its run length
_EDGES = 4_096
_NODES = 96  # of the quadrature; doubling them moves no run length by a millionth
_BLOCK = 256  # values ranked at once
_CLIP = 1e-12  # a rank this near 0 or 1 is worth seven standard deviations


@dataclass(frozen=True)
class Change:
    """One alarm of a stream."""

    at: int  # index of the value that raised it, from the first one fed
    since: int  # index the change most likely began at: the first after the CUSUM last stood at zero
    direction: Literal["up", "down"]


def mean_run_length(threshold: float, allowance: float, shift: float = 0.0) -> float:
    """Values until a one-sided CUSUM of N(shift, 1) scores from zero exceeds `threshold`; exact but for quadrature."""
    from scipy.stats import norm  # noqa: PLC0415 (half a second)

    roots, weights = np.polynomial.legendre.leggauss(_NODES)
    nodes, weights = (roots + 1) * threshold / 2, weights * threshold / 2
    starts = np.concatenate([[0.0], nodes])
    kernel = np.empty((_NODES + 1, _NODES + 1))
    kernel[:, 0] = norm.cdf(allowance - starts - shift)  # back to zero
    kernel[:, 1:] = weights * norm.pdf(nodes[None, :] + allowance - starts[:, None] - shift)
    return float(np.linalg.solve(np.eye(_NODES + 1) - kernel, np.ones(_NODES + 1))[0])


@lru_cache(maxsize=64)
def threshold_for(run_length: float, shift: float = DESIGN_SHIFT, *, sides: int = 2) -> float:
    """The threshold at which `sides` CUSUMs of standard normal scores raise a false alarm once in `run_length`
    values.

    Two mirrored CUSUMs are never both above zero long enough to hide each other's alarm: their rates add up (Van
    Dobben de Bruyn, 1968).
    """
    from scipy.optimize import brentq  # noqa: PLC0415 (half a second)

    def excess(threshold: float) -> float:
        return math.log(mean_run_length(threshold, shift / 2)) - math.log(sides * run_length)

    highest = 4.0
    while excess(highest) < 0:
        highest *= 2
    return float(brentq(excess, 1e-3, highest, xtol=1e-6))


class Cusum:
    """Watches one stream against its reference; after an alarm it begins again at zero.

    Args:
        reference: what is normal; one value suffices for the promise, some hundreds for the power.
        run_length: mean number of values between false alarms.
        rng: breaks ties.
        shift: the change it is quickest at, in standard deviations.
    """

    def __init__(
        self,
        reference: NDArray[np.float64],
        run_length: float,
        rng: np.random.Generator,
        shift: float = DESIGN_SHIFT,
    ) -> None:
        self.threshold = threshold_for(run_length, shift)
        self.highest = 0.0  # either side's, since the start
        self._allowance = shift / 2
        self._rng = rng
        edges = np.unique(reference)
        self._edges = edges if len(edges) <= _EDGES else edges[np.linspace(0, len(edges) - 1, _EDGES).astype(int)]
        self._counts = np.bincount(self._cells(reference), minlength=2 * len(self._edges) + 1)
        self._seen = 0
        self._levels = [0.0, 0.0]
        self._since = [0, 0]

    def feed(self, values: NDArray[np.float64]) -> list[Change]:
        """Take the next values, in order; the alarms they raise."""
        changes: list[Change] = []
        for start in range(0, len(values), _BLOCK):
            for score in self._scores(values[start : start + _BLOCK]):
                self._step(score, changes)
        return changes

    def _step(self, score: float, changes: list[Change]) -> None:
        for side, signed in enumerate((score, -score)):
            level = self._levels[side] + signed - self._allowance
            if level <= 0:
                self._levels[side], self._since[side] = 0.0, self._seen + 1
                continue
            self._levels[side] = level
            self.highest = max(self.highest, level)
            if level > self.threshold:
                changes.append(Change(self._seen, self._since[side], "down" if side else "up"))
                self._levels, self._since = [0.0, 0.0], [self._seen + 1, self._seen + 1]
                break
        self._seen += 1

    def _scores(self, values: NDArray[np.float64]) -> list[float]:
        from scipy.special import ndtri  # noqa: PLC0415 (half a second)

        cells = self._cells(values)
        below = np.concatenate([[0], np.cumsum(self._counts)[:-1]])[cells]
        earlier = np.tri(len(cells), k=-1, dtype=bool)
        less = below + ((cells[None, :] < cells[:, None]) & earlier).sum(axis=1)
        equal = self._counts[cells] + ((cells[None, :] == cells[:, None]) & earlier).sum(axis=1)
        before = self._counts.sum() + np.arange(len(cells))
        ranks = (less + self._rng.random(len(cells)) * (equal + 1)) / (before + 1)
        np.add.at(self._counts, cells, 1)
        scores: list[float] = ndtri(np.clip(ranks, _CLIP, 1 - _CLIP)).tolist()
        return scores

    def _cells(self, values: NDArray[np.float64]) -> NDArray[np.intp]:
        """Cell 2i+1 is the reference's i-th value itself, 2i what lies below it and above the one before."""
        left, right = np.searchsorted(self._edges, values, "left"), np.searchsorted(self._edges, values, "right")
        return left + right
