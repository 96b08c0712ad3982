"""How many differences are found, and after how many units, against one look at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from experiment_parts.simulated import declared, evidence_of
from experiment_parts.simulation import ALPHA, POWER, at_looks, chunks, radii
from tuneloop.registry.experiments.analysis import Compared, analyse
from tuneloop.registry.experiments.effect import Floats, Indices, Sums, difference, part_of
from tuneloop.registry.experiments.planning import fixed_units, sequence_units
from tuneloop.registry.experiments.spending import SPENDABLE, boundaries, inflation


@dataclass(frozen=True)
class Found:
    """Of A/B tests with a true effect, how many were found, and after how many units of both arms."""

    effect: float  # in parts of the declared one
    method: str
    most_units: int
    power: float
    mean_units: float
    median_units: float
    covers: float  # the share whose interval, where the test ended, holds the truth


def ab(tests: int, *, base: float = 0.10, effect: float = 0.02) -> list[Found]:
    """A/B tests of a binary metric, whose declared effect is 2 points, with true effects of a half to twice that."""
    spread = 2 * sum(p * (1 - p) for p in (base, base + effect))
    fixed = fixed_units(spread, effect, alpha=ALPHA, power=POWER)
    planned = math.ceil(fixed * inflation([k / 5 for k in range(1, 6)], ALPHA, POWER))
    most = sequence_units(spread, effect, alpha=ALPHA, power=POWER)
    looks = np.unique(np.concatenate([np.arange(100, most // 2, 25), [most // 2]]))
    fifths = np.ceil(np.arange(1, 6) * planned / 10).astype(int)
    bounds = np.array(boundaries([k / 5 for k in range(1, 6)], SPENDABLE * ALPHA))
    rows: list[Found] = []
    for part in (0.5, 1.0, 1.5, 2.0):
        ends: dict[str, list[Floats]] = {}
        for rng, count in chunks(tests, 4):
            values = [rng.binomial(1, p, (count, most // 2)).astype(float) for p in (base, base + part * effect)]
            for method, at, reach in (
                ("one look at the end", np.array([fixed // 2]), np.array([norm.isf(ALPHA / 2)])),
                ("planned looks (5)", fifths, bounds),
                ("always-valid sequence", looks, None),
            ):
                sums = [at_looks(v, np.ones_like(v), at) for v in values]
                found = difference([(part_of(sums[0]), part_of(sums[1]))], share=True)
                if reach is None:
                    width = radii(found.spread, alpha=ALPHA, effect=effect)
                else:
                    width = reach * np.sqrt(found.spread)
                beyond = abs(found.estimate) > width
                end = np.where(beyond.any(1), beyond.argmax(1), len(at) - 1)
                holds = (abs(found.estimate - part * effect) <= width)[np.arange(count), end]
                ends.setdefault(method, []).append(np.array([beyond.any(1), 2 * at[end], holds], dtype=float))
        for method, parts in ends.items():
            decided, units, covers = np.concatenate(parts, axis=1)
            limit = {"one look at the end": fixed, "planned looks (5)": planned}.get(method, most)
            mean, median = float(units.mean()), float(np.median(units))
            rows.append(Found(part, method, limit, float(decided.mean()), mean, median, float(covers.mean())))
    return rows


def same_as_live(tests: int) -> dict[str, float]:
    """A/B tests judged by `analyse`, as a report does it: whether the verdicts are those of the rows above."""
    agree = decided = 0
    for number in range(tests):
        rng = np.random.default_rng([7, number])
        arm = rng.integers(0, 2, 6_000)
        y = rng.binomial(1, np.where(arm == 1, 0.13, 0.10)).astype(float)
        plan, evidence = declared(2, 1_000, 0.02, bandit=False), evidence_of([y], [arm], [0 * arm], [(5_000, 5_000)])
        [compared] = analyse(plan, evidence, started_s=0.0, until_s=len(y) - 1.0).compared
        agree += _crossings(y, arm, compared) == [look.decides for look in compared.looks]
        decided += compared.looks[-1].decides
    return {"tests": tests, "the same": agree / tests, "decided": decided / tests}


def _crossings(y: Floats, arm: Indices, compared: Compared) -> list[bool]:
    crossed = []
    for look in compared.looks:
        sides = [y[: look.units][arm[: look.units] == one] for one in (0, 1)]
        parts = [part_of(Sums.of(side, np.ones_like(side), np.zeros_like(side))) for side in sides]
        found = difference([(parts[0], parts[1])], share=True)
        crossed.append(bool(abs(found.estimate) > radii(found.spread, alpha=ALPHA, effect=0.02)))
    return crossed
