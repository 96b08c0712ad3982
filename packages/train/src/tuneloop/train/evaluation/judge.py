"""The gate: a challenger against the champion, set by set. Pure; no data is inconclusive, never a pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from tuneloop.registry.nouns import Check, GateReport, Interval
from tuneloop.registry.policies import GatePolicy, Threshold
from tuneloop.train.evaluation.statistics import RowScore, paired_difference
from tuneloop.train.recipe import FRESH, RetrainSection


@dataclass(frozen=True)
class Rules:
    """What the gate asks for."""

    margin: float  # nats per token a challenger may be worse on an old set
    min_rows: int  # fewer rows in a set decide nothing
    margins: Mapping[str, float] = field(default_factory=dict)  # evaluation set → a margin of its own
    metrics: Mapping[str, Threshold] = field(default_factory=dict)  # a measure of the challenger → where it must lie
    level: float = 0.95

    @classmethod
    def of(cls, retrain: RetrainSection, policy: GatePolicy) -> Self:
        """What the recipe asks for, where the model's gate policy says nothing else."""
        return cls(policy.margin or retrain.margin, policy.min_rows or retrain.min_rows, policy.margins, policy.metrics)


@dataclass(frozen=True)
class Pair:
    """Champion and challenger on the same rows of one set."""

    champion: Sequence[RowScore]
    challenger: Sequence[RowScore]


def judge(
    sets: Mapping[str, Pair],
    measured: Mapping[str, float],
    rules: Rules,
    *,
    model: str,
    version: int,
    champion: int,
    at: datetime,
) -> GateReport:
    """Judge a challenger.

    `fresh` is the primary set: better there means the whole interval of the NLL difference lies below 0. Every other
    set asks for non-inferiority: the interval's upper end below its margin. What `rules` bounds must have been
    `measured` of the challenger and lie within.
    """
    fresh = sets.get(FRESH, Pair((), ()))
    checks = [_better(fresh, rules)]
    checks += [_not_worse(name, pair, rules) for name, pair in sorted(sets.items()) if name != FRESH]
    checks += [_not_worse(name, Pair((), ()), rules) for name in sorted(rules.margins.keys() - sets.keys())]
    checks += [_within(name, measured.get(name), bounds) for name, bounds in sorted(rules.metrics.items())]
    return GateReport(model=model, version=version, champion=champion, at=at, checks=tuple(checks))


def _better(pair: Pair, rules: Rules) -> Check:
    name = f"better on {FRESH}"
    if (short := _too_few(name, pair, rules)) is not None:
        return short
    interval = paired_difference(pair.champion, pair.challenger, level=rules.level)
    if interval.high < 0:
        return _check(name, "pass", interval, pair, "below 0")
    if interval.low > 0:
        return _check(name, "fail", interval, pair, "above 0: the champion is better")
    return _check(name, "inconclusive", interval, pair, "0 lies inside")


def _not_worse(set_name: str, pair: Pair, rules: Rules) -> Check:
    name = f"not worse on {set_name}"
    if (short := _too_few(name, pair, rules)) is not None:
        return short
    interval = paired_difference(pair.champion, pair.challenger, level=rules.level)
    margin = rules.margins.get(set_name, rules.margin)
    if interval.high < margin:
        return _check(name, "pass", interval, pair, f"below the margin of {margin:g}")
    if interval.low > margin:
        return _check(name, "fail", interval, pair, f"above the margin of {margin:g}")
    return _check(name, "inconclusive", interval, pair, f"the margin of {margin:g} lies inside")


def _within(name: str, value: float | None, bounds: Threshold) -> Check:
    parts = [("at least", bounds.min), ("at most", bounds.max)]
    asked = " and ".join(f"{words} {bound:g}" for words, bound in parts if bound is not None)
    if value is None:
        return Check(name=name, verdict="inconclusive", detail=f"was not measured; {asked} is asked for")
    too_low = bounds.min is not None and value < bounds.min
    too_high = bounds.max is not None and value > bounds.max
    held = not (too_low or too_high or math.isnan(value))
    return Check(name=name, verdict="pass" if held else "fail", detail=f"{value:.4g}; {asked} is asked for")


def _too_few(name: str, pair: Pair, rules: Rules) -> Check | None:
    if len(pair.champion) >= rules.min_rows:
        return None
    return Check(
        name=name,
        verdict="inconclusive",
        detail=f"{len(pair.champion)} rows, at least {rules.min_rows} are needed to decide",
    )


def _check(name: str, verdict: str, interval: Interval, pair: Pair, why: str) -> Check:
    text = (
        f"NLL difference {interval.estimate:+.4f} nats/token, {interval.level:.0%} interval "
        f"[{interval.low:+.4f}, {interval.high:+.4f}] over {len(pair.champion)} rows: {why}"
    )
    return Check.model_validate({"name": name, "verdict": verdict, "detail": text, "interval": interval})
