"""The gate: a challenger against the champion, set by set. Pure; no data is inconclusive, never a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from tuneloop.registry.gates.verdicts import BETTER, NOT_WORSE, better, not_worse, too_few
from tuneloop.registry.nouns import Check, GateReport
from tuneloop.registry.policies import GatePolicy
from tuneloop.train.evaluation.statistics import RowScore, paired_difference
from tuneloop.train.recipe import FRESH, RetrainSection


@dataclass(frozen=True)
class Rules:
    """What the gate asks for."""

    margin: float  # nats per token a challenger may be worse on an old set
    min_rows: int  # fewer rows in a set decide nothing
    margins: Mapping[str, float] = field(default_factory=dict)  # evaluation set → a margin of its own
    level: float = 0.95

    @classmethod
    def of(cls, retrain: RetrainSection, policy: GatePolicy) -> Self:
        """What the recipe asks for, where the model's gate policy says nothing else."""
        return cls(policy.margin or retrain.margin, policy.min_rows or retrain.min_rows, policy.margins)


@dataclass(frozen=True)
class Pair:
    """Champion and challenger on the same rows of one set."""

    champion: Sequence[RowScore]
    challenger: Sequence[RowScore]


def judge(
    sets: Mapping[str, Pair],
    rules: Rules,
    *,
    model: str,
    version: int,
    champion: int,
    at: datetime,
) -> GateReport:
    """Judge a challenger.

    `fresh` is the primary set: better there means the whole interval of the NLL difference lies below 0. Every other
    set asks for non-inferiority: the interval's upper end below its margin.
    """
    fresh = sets.get(FRESH, Pair((), ()))
    checks = [_better(fresh, rules)]
    checks += [_not_worse(name, pair, rules) for name, pair in sorted(sets.items()) if name != FRESH]
    checks += [_not_worse(name, Pair((), ()), rules) for name in sorted(rules.margins.keys() - sets.keys())]
    return GateReport(model=model, version=version, champion=champion, at=at, checks=tuple(checks))


def _better(pair: Pair, rules: Rules) -> Check:
    rows = len(pair.champion)
    if (short := too_few(BETTER, rows, rules.min_rows)) is not None:
        return short
    return better(paired_difference(pair.champion, pair.challenger, level=rules.level), rows)


def _not_worse(set_name: str, pair: Pair, rules: Rules) -> Check:
    rows = len(pair.champion)
    if (short := too_few(f"{NOT_WORSE}{set_name}", rows, rules.min_rows)) is not None:
        return short
    interval = paired_difference(pair.champion, pair.challenger, level=rules.level)
    return not_worse(set_name, interval, rows, rules.margins.get(set_name, rules.margin))
