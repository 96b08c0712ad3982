"""How often a difference that is not there is ever claimed, by whoever looks all the time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from experiment_parts.simulation import ALPHA, ARM, Draw, at_looks, chunks, radii, tau
from tuneloop.registry.experiments.effect import (
    Difference,
    Floats,
    Indices,
    Sums,
    difference,
    part_of,
    quantile_part,
)

LOOKS: Indices = np.arange(100, ARM + 1, 25)


@dataclass(frozen=True)
class FalsePositives:
    """Of A/A tests, the share that ever claimed a difference."""

    metric: str
    tests: int
    looks: int
    sequence: float
    naive: float  # a t-test at each look
    naive_curve: list[float]  # by look
    sequence_curve: list[float]


def ever(found: Difference, welch: Floats, effect: float) -> tuple[Floats, Floats]:
    """For each test and look, whether the sequence, and Welch's t-test, have claimed a difference by then."""
    beyond = abs(found.estimate) > radii(found.spread, alpha=ALPHA, effect=effect)
    naive = abs(found.estimate) > norm.isf(ALPHA / 2) * np.sqrt(welch)
    return np.logical_or.accumulate(beyond, 1), np.logical_or.accumulate(naive, 1)


def row_of(metric: str, tests: int, curves: Floats) -> FalsePositives:
    """How many had claimed a difference by each look, by the sequence and by the t-test, as a row."""
    sequence, naive = ([float(v) for v in side] for side in curves / tests)
    return FalsePositives(metric, tests, len(naive), sequence[-1], naive[-1], naive, sequence)


def aa(metric: str, draw: Draw, tests: int, *, share: bool, treated: int = ARM, times: int = 1) -> FalsePositives:
    """A/A tests of a mean or a ratio whose units come one after the other; the control gets so many times as many."""
    looks = LOOKS[: int(np.searchsorted(LOOKS, treated, side="right"))]
    curves = np.zeros((2, len(looks)))
    for rng, count in chunks(tests, 1):
        control, treatment = (
            part_of(at_looks(*draw(rng, (count, size * treated)), looks * size)) for size in (times, 1)
        )
        found = difference([(control, treatment)], share=share)
        welch = found.variance_control / control.n + found.variance_treatment / treatment.n
        variance = float(found.variance_control[:, -1].mean()) * (1 + 1 / times) / 2
        curves += [side.sum(0) for side in ever(found, welch, tau(variance, treated))]
    return row_of(metric, tests, curves)


def aa_returning(tests: int, *, units: int = 1_000, looks: int = 40) -> FalsePositives:
    """A/A tests whose units come back: every look adds requests of old units and of new ones."""
    curves = np.zeros((2, looks))
    for rng, count in chunks(tests, 2):
        shape = (2, count, units)
        begins = rng.integers(0, looks, shape)
        liking, pace = rng.beta(1, 9, shape), rng.gamma(1.0, 0.5, shape)
        down, rated = np.zeros(shape), np.zeros(shape)
        ever_wrong = np.zeros((2, count), dtype=bool)
        for look in range(looks):
            now = rng.poisson(pace) * (begins <= look) + (begins == look)
            down += rng.binomial(now, liking)
            rated += now
            there = rated > 0
            if there.sum(-1).min() < 100:
                continue
            x = there.astype(float)
            y = np.divide(down, rated, out=np.zeros(shape), where=there)
            sums = [replace(Sums.of(y[arm], x[arm], np.zeros_like(y[arm])), n=x[arm].sum(-1)) for arm in (0, 1)]
            found = difference([(part_of(sums[0]), part_of(sums[1]))], share=True)
            effect = tau(0.02, units)
            ever_wrong[0] |= abs(found.estimate) > radii(found.spread, alpha=ALPHA, effect=effect)
            ever_wrong[1] |= abs(found.estimate) > norm.isf(ALPHA / 2) * np.sqrt(found.spread)
            curves[:, look] += ever_wrong.sum(1)
    return row_of("binary, units that return", tests, curves)


def aa_quantile(tests: int, *, units: int = 1_500) -> FalsePositives:
    """A/A tests of a 95th percentile, from units with one to some ten requests each and a pace of their own."""
    looks = np.linspace(units // 10, units, 20).astype(int)
    curves = np.zeros((2, len(looks)))
    for rng, count in chunks(tests, 3):
        for _ in range(count):
            arms = []
            for _arm in range(2):
                requests = rng.geometric(0.5, units)
                unit = np.repeat(np.arange(units), requests)
                values = np.exp(np.repeat(rng.normal(0, 0.5, units), requests) + rng.normal(0, 0.5, len(unit)))
                ends = np.searchsorted(unit, looks)
                arms.append([quantile_part(values[:end], unit[:end], 0.95) for end in ends])
            wrong = np.zeros(2, dtype=bool)
            for look, (control, treatment) in enumerate(zip(*arms, strict=True)):
                found = difference([(control, treatment)], share=False)
                estimate, spread = abs(float(found.estimate)), found.spread
                wrong[0] |= estimate > float(radii(spread, alpha=ALPHA, effect=0.35))
                wrong[1] |= estimate > norm.isf(ALPHA / 2) * math.sqrt(float(spread))
                curves[:, look] += wrong
    return row_of("95th percentile", tests, curves)
