"""What a bandit loses on the way, by its floor, against equal shares; and how it judges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from experiment_parts.simulated import declared, evidence_of
from tuneloop.registry.experiments.analysis import analyse
from tuneloop.registry.experiments.conduct import proposed


@dataclass(frozen=True)
class Regret:
    """What shares cost against giving everybody the best arm from the start."""

    shares: str
    lost: float  # successes
    standard_error: float
    claimed: float  # the share of runs that claimed a difference
    curve: list[float]  # by step


def bandits(runs: int, rates: tuple[float, ...], *, steps: int = 20, each: int = 500) -> list[Regret]:
    """Regret (successes lost to the best arm) of the bandit by its floor, against equal shares; and how it judges."""
    rows: list[Regret] = []
    arms = len(rates)
    for floor_bp in (0, 100, 500, 1_000, 2_000):
        plan = declared(arms, max(floor_bp, 100), 0.02, bandit=True)
        regret = np.zeros((runs, steps))
        claims = 0
        for run in range(runs):
            rng = np.random.default_rng([8, run])
            shares, y, arm, stratum = [tuple(plan.arms.values())], [], [], []
            for step in range(steps):
                now = rng.choice(arms, each, p=np.array(shares[-1]) / sum(shares[-1]))
                arm.append(now)
                y.append(rng.binomial(1, np.array(rates)[now]).astype(float))
                stratum.append(np.full(each, len(shares) - 1))
                regret[run, step] = (max(rates) - np.array(rates)[now]).sum()
                if floor_bp and step < steps - 1:
                    evidence = evidence_of(y, arm, stratum, shares)
                    wanted = tuple(proposed(plan, evidence, 1e9, seed=run * steps + step).split.values())
                    shares += [wanted] if wanted != shares[-1] else []
            evidence = evidence_of(y, arm, stratum, shares)
            found = analyse(plan, evidence, started_s=0.0, until_s=1e9)
            claims += any(look.decides for compared in found.compared for look in compared.looks)
        curve = regret.cumsum(1).mean(0)
        name, error = (
            f"bandit, floor {floor_bp / 100:g} %" if floor_bp else "equal",
            regret.sum(1).std() / math.sqrt(runs),
        )
        rows.append(Regret(name, float(curve[-1]), float(error), claims / runs, [float(v) for v in curve]))
    return rows
