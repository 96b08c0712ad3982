"""How often five planned looks claim a difference that is not there; beside them, what the textbook's test does.

The textbook's takes Welch's variance, spends all of alpha, and takes the looks to be as alike as their numbers of units
say. It is wrong too often where a small arm of skewed values stands beside a large one, and where units come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from experiment_parts.simulated import declared
from experiment_parts.simulation import ALPHA, Draw, chunks
from tuneloop.registry.experiments.analysis import analyse
from tuneloop.registry.experiments.effect import Floats, Sums, difference, part_of
from tuneloop.registry.experiments.gather import Evidence, LeftOut, Stratum, Stream
from tuneloop.registry.experiments.spending import SPENDABLE, boundaries

LOOKS = 5
_FIFTHS = [(look + 1) / LOOKS for look in range(LOOKS)]
_REACH = float(norm.isf(0.025))


@dataclass(frozen=True)
class PlannedLooks:
    """Of A/A tests with five planned looks, the share that claimed a difference."""

    metric: str
    arms: str
    a_look: int  # units of the smaller arm
    tests: int
    wrong: float
    low: float  # of `wrong`, 95 % (Wilson)
    high: float
    textbook: float


def row_of(metric: str, arms: str, a_look: int, tests: int, wrong: int, textbook: int) -> PlannedLooks:
    """A row, with the interval that so many tests leave."""
    share, squared = wrong / tests, _REACH**2 / tests
    middle, half = share + squared / 2, _REACH * math.sqrt(share * (1 - share) / tests + squared / tests / 4)
    low, high = ((middle + side * half) / (1 + squared) for side in (-1, 1))
    return PlannedLooks(metric, arms, a_look, tests, share, low, high, textbook / tests)


def looked(y: Floats, x: Floats) -> Sums:
    """The sums by each of the equal looks."""

    def total(values: Floats) -> Floats:
        return np.asarray(values.reshape(*values.shape[:-1], LOOKS, -1).sum(-1).cumsum(-1))

    n, nothing = total(np.ones_like(y)), np.zeros((*y.shape[:-1], LOOKS))
    return Sums(n, total(y), total(x), nothing, total(y * y), total(x * x), nothing, total(y * x), nothing, nothing)


def aa(
    metric: str, draw: Draw, tests: int, seed: int, *, share: bool, a_look: int = 400, times: int = 1
) -> PlannedLooks:
    """A/A tests whose units come once; the control gets so many times as many as the treatment."""
    bounds, published = (np.array(boundaries(_FIFTHS, alpha)) for alpha in (SPENDABLE * ALPHA, ALPHA))
    wrong = textbook = 0
    for rng, count in chunks(tests, seed):
        control, treatment = (part_of(looked(*draw(rng, (count, size * a_look * LOOKS)))) for size in (times, 1))
        found = difference([(control, treatment)], share=share)
        welch = found.variance_control / control.n + found.variance_treatment / treatment.n
        wrong += int((abs(found.estimate) > bounds * np.sqrt(found.spread)).any(1).sum())
        textbook += int((abs(found.estimate) > published * np.sqrt(welch)).any(1).sum())
    return row_of(metric, f"1 : {times}", a_look, tests, wrong, textbook)


def aa_returning(tests: int, seed: int, *, a_look: int = 150, pace: float = 10.0) -> PlannedLooks:
    """A/A tests whose units come back all the time, so that a mean of a unit's requests settles; judged as a report
    does it."""
    units = 2 * a_look * LOOKS
    plan = declared(2, 1_000, 0.1, bandit=False, max_units=units, looks=LOOKS)
    published = boundaries(_FIFTHS, ALPHA)
    wrong = textbook = 0
    for number in range(tests):
        rng = np.random.default_rng([seed, number])
        begins = np.sort(rng.random(units))
        more = rng.poisson(pace * (1 - begins))
        unit = np.concatenate([np.arange(units), np.repeat(np.arange(units), more)])
        at_s = np.concatenate([begins, rng.uniform(np.repeat(begins, more), 1.0)])
        value = rng.binomial(1, np.repeat([0.3], len(unit))).astype(float)
        order = np.argsort(at_s, kind="stable")
        stream = Stream(at_s[order], unit[order], value[order], np.ones(len(unit)))
        evidence = Evidence(
            (1, 2),
            (Stratum((1,), (5_000, 5_000)),),
            rng.integers(0, 2, units),
            np.zeros(units, dtype=np.int64),
            np.zeros(units),
            (0, 0),
            (stream,),
            LeftOut(),
        )
        found = analyse(plan, evidence, started_s=0.0, until_s=1.0)
        looks = [look for compared in found.compared for look in compared.looks]
        wrong += any(look.decides for look in looks)
        textbook += any(
            abs(look.estimate) > bound * math.sqrt(float(look.found.spread))
            for look, bound in zip(looks, published, strict=False)
        )
    return row_of("binary, units that return", "1 : 1", a_look, tests, wrong, textbook)
