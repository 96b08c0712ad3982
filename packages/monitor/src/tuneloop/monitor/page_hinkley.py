"""A change of mean in a stream of numbers, by Page-Hinkley's test, with a threshold that is earned. Pure; randomness is
injected.

Each value's deviation from the mean of all so far, itself among them, less an allowance, is summed up; the test
statistic is how far that sum has risen above its lowest (Page, "Continuous inspection schemes", Biometrika 41, 1954;
Hinkley, "Inference about the change-point from cumulative sum tests", Biometrika 58, 1971; with the running mean as in
Gama et al., "A survey on concept drift adaptation", ACM Computing Surveys 46, 2014). Usual implementations leave the
threshold to the reader. Here it is what the largest value over a window exceeds in a share alpha of random orders of
reference and window together: exact while values are exchangeable, whatever their distribution.

It reads the values themselves where `cusum` reads ranks: quicker where their size is what matters, slower where a few
are huge. And its mean runs along, so that what creeps slowly is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.cusum import DESIGN_SHIFT, Change
from tuneloop.monitor.detectors import Outcome, permutations_for, ranked

ALLOWANCE = DESIGN_SHIFT / 2  # standard deviations of all values together, which no order changes
_CELLS = 262_144  # of values in random order at once


@dataclass(frozen=True)
class Found:
    """What the test says of a window."""

    outcome: Outcome  # statistic and threshold in standard deviations
    change: Change | None  # where the threshold was first passed


def page_hinkley(
    reference: NDArray[np.float64], window: NDArray[np.float64], alpha: float, rng: np.random.Generator
) -> Found:
    """Whether the mean of a window's values moved, either way, against the reference's.

    Args:
        reference: what is normal, in any order; at least one value.
        window: what is new, in order.
        alpha: level of the test over the whole window.
        rng: source of the orders.
    """
    pooled = np.concatenate([reference, window])
    spread = float(pooled.std())
    scaled = (pooled - pooled.mean()) / (spread if spread > 0 else 1.0)
    observed = _risen(scaled[None, :], len(reference))
    highest = float(observed.max())
    count = permutations_for(alpha)
    at_once = max(_CELLS // len(scaled), 1)
    permuted = []
    for start in range(0, count, at_once):
        orders = rng.permuted(np.broadcast_to(scaled, (min(at_once, count - start), len(scaled))), axis=1)
        permuted.append(_risen(orders, len(reference)).max(axis=(0, 2)))
    outcome = ranked(highest, np.concatenate(permuted), alpha)
    if not outcome.alarm:
        return Found(outcome, None)
    passed = observed[:, 0, :] > outcome.threshold
    at = int(np.argmax(passed.any(axis=0)))
    side = int(np.argmax(passed[:, at]))
    since = (
        int(np.flatnonzero(observed[side, 0, : at + 1] <= 0.0)[-1]) + 1 if (observed[side, 0, :at] <= 0).any() else 0
    )
    return Found(outcome, Change(at, since, "down" if side else "up"))


def _risen(ordered: NDArray[np.float64], n_reference: int) -> NDArray[np.float64]:
    """How far the sum of deviations stands above its lowest, up and down; (B, N) → (2, B, window)."""
    totals = np.cumsum(ordered, axis=1)[:, n_reference:]
    means = totals / np.arange(n_reference + 1, ordered.shape[1] + 1)
    away = ordered[:, n_reference:] - means
    sums = np.cumsum(np.stack([away, -away]) - ALLOWANCE, axis=2)
    result: NDArray[np.float64] = sums - np.minimum(np.minimum.accumulate(sums, axis=2), 0.0)
    return result
