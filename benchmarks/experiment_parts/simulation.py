"""What is simulated: tests by the thousand, side by side, whose units come one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import norm

from tuneloop.registry.experiments.effect import Floats, Indices, Sums
from tuneloop.registry.statistics.sequences import radius

ALPHA, POWER, CHUNK = 0.05, 0.8, 250
ARM = 5_000  # units of each arm at the last look
radii = np.vectorize(radius, otypes=[float])  # many tests at once
Draw = Callable[[np.random.Generator, tuple[int, int]], tuple[Floats, Floats]]  # of shape (tests, units)


def tau(variance: float, units: int) -> float:
    """The effect a fixed test of so many units an arm finds with 80 % power."""
    return float(norm.isf(ALPHA / 2) + norm.isf(1 - POWER)) * math.sqrt(2 * variance / units)


def at_looks(y: Floats, x: Floats, looks: Indices) -> Sums:
    """The sums of the first so many units, for each look."""

    def total(values: Floats) -> Floats:
        return np.asarray(values.cumsum(-1)[..., looks - 1])

    nothing = np.zeros((*y.shape[:-1], len(looks)))
    n = np.broadcast_to(looks.astype(float), nothing.shape)
    return Sums(n, total(y), total(x), nothing, total(y * y), total(x * x), nothing, total(y * x), nothing, nothing)


def chunks(tests: int, seed: int) -> Iterator[tuple[np.random.Generator, int]]:
    """Generators of their own for so many tests at a time."""
    for number, start in enumerate(range(0, tests, CHUNK)):
        yield np.random.default_rng([seed, number]), min(CHUNK, tests - start)


def binary(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """One rated answer a unit, 5 % thumbs-down."""
    return rng.binomial(1, 0.05, shape).astype(float), np.ones(shape)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Log-normal latencies with σ = 1: skewness 6.2."""
    return rng.lognormal(0, 1, shape), np.ones(shape)


def very_skewed(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Log-normal with σ = 1.5: skewness 33."""
    return rng.lognormal(0, 1.5, shape), np.ones(shape)


def ratio(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Errors per request: units with 1 to some 20 requests and an error rate of their own, 8 % in the mean."""
    asked = rng.geometric(0.25, shape)
    return rng.binomial(asked, rng.beta(0.8, 9.2, shape)).astype(float), asked.astype(float)
