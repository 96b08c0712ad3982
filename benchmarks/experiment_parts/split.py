"""How often a split that is off is found; and what a covariate is worth."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import chi2, ncx2, norm

from experiment_parts.simulation import ALPHA, chunks
from tuneloop.registry.experiments.effect import Sums, difference, part_of
from tuneloop.registry.experiments.split_check import MISMATCH, mismatch_p_value

SPLIT_UNITS = 100_000
SPLITS = {
    "none": 0.5,
    "1 % relative (50.5 : 49.5)": 0.505,
    "1 point (51 : 49)": 0.51,
}  # how far it is off: one arm's share


def split_power(share: float, units: int = SPLIT_UNITS) -> float:
    """The computed power of the split check where one of two equal arms gets this share: χ² off its centre."""
    off_centre = units * (2 * share - 1) ** 2
    return float(ncx2.sf(chi2.isf(MISMATCH, 1), 1, off_centre) if off_centre else MISMATCH)


def split_mismatch(tests: int, units: int = SPLIT_UNITS) -> dict[str, float]:
    """How often a split that is off is found among 100,000 units, and a true one is taken for off."""
    found = {}
    for number, (name, share) in enumerate(SPLITS.items()):
        first = np.random.default_rng([5, number]).binomial(units, share, tests)
        found[name] = (
            sum(mismatch_p_value([[n, units - n]], [[5_000, 5_000]]) < MISMATCH for n in first.tolist()) / tests
        )
    return found


def covariate_gain(tests: int, *, units: int = 1_000) -> dict[str, dict[str, float]]:
    """By the correlation of metric and covariate: variance left, and false positives of a single look."""
    gains: dict[str, dict[str, float]] = {}
    for correlation in (0.0, 0.5, 0.7, 0.9):
        left, wrong = 0.0, 0
        for rng, count in chunks(tests, 6):
            known = rng.normal(size=(2, count, units))
            noise = rng.normal(size=known.shape)
            y, x = correlation * known + math.sqrt(1 - correlation**2) * noise, np.ones_like(known)
            found, plain = (
                difference([(part_of(Sums.of(y[0], x[0], c[0])), part_of(Sums.of(y[1], x[1], c[1])))], share=False)
                for c in (known, 0 * known)
            )
            left += float((found.spread / plain.spread).sum())
            wrong += int((abs(found.estimate) > norm.isf(ALPHA / 2) * np.sqrt(found.spread)).sum())
        gains[f"{correlation:g}"] = {"variance_left": left / tests, "false_positives": wrong / tests}
    return gains
