"""What the evidence says at each look; pure.

By default every look's interval belongs to one always-valid sequence, so anybody may look whenever they like. With a
declared `max_units` there are that many planned looks (O'Brien–Fleming spending), each made of exactly the traffic up
to the unit that completes it: computed again from the records, so that asking twice costs nothing. How alike two
looks are is computed with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tuneloop.registry.experiments.contributed import arrivals_of, parts_at, pulls_at
from tuneloop.registry.experiments.declaration import Declaration, Metric
from tuneloop.registry.experiments.effect import Difference, Floats, difference
from tuneloop.registry.experiments.gather import Evidence, Stream
from tuneloop.registry.experiments.planning import sequence_units, spans_until, unit_spread
from tuneloop.registry.experiments.spending import SPENDABLE, boundaries
from tuneloop.registry.experiments.split_check import MISMATCH, mismatch_p_value
from tuneloop.registry.statistics.correction import holm
from tuneloop.registry.statistics.sequences import p_value, radius

LEAST_UNITS = 100  # of each arm; with fewer, a skewed metric's mean is not yet normal
_LOOKS = 40  # of a sequence's curve
_SPANS = 24  # that the time since the start is cut into, for the pace of units


@dataclass(frozen=True)
class Look:
    """Treatment against control as it stood at a time."""

    at_s: float
    units: int  # of all arms
    control: float
    treatment: float
    low: float
    high: float
    found: Difference
    planned: int = 0  # which of the planned looks; 0: any

    @property
    def estimate(self) -> float:
        """Treatment minus control."""
        return self.treatment - self.control

    @property
    def decides(self) -> bool:
        """Whether the interval leaves out no difference."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Guarded:
    """A guardrail as it stands; `worse` values are positive where the treatment is worse."""

    metric: Metric
    margin: float
    look: Look | None  # None: not enough units
    p_harm: float  # that it is worse by no more than the margin; valid at any look
    harmed: bool = False  # after Holm's correction over the treatment's guardrails

    @property
    def is_fine(self) -> bool:
        """Whether it is worse by less than the margin, at the interval's level."""
        if self.look is None or self.harmed:
            return False
        worst = self.look.high if self.metric.lower_is_better else -self.look.low
        return worst < self.margin


@dataclass(frozen=True)
class Compared:
    """One treatment against the control."""

    version: int
    looks: tuple[Look, ...]  # of the primary metric, in order of time
    guardrails: tuple[Guarded, ...]
    more_units: int | None = None  # until it is likely decided; None: decided, or nothing can be said
    more_s: float | None = None

    @property
    def deciding(self) -> Look | None:
        """The look that counts: a planned one that decided, otherwise the newest."""
        decided = next((look for look in self.looks if look.planned and look.decides), None)
        return decided or (self.looks[-1] if self.looks else None)


@dataclass(frozen=True)
class Analysis:
    """Everything the evidence says; nothing is compared where the split is not what was declared."""

    units: tuple[int, ...]  # of each arm
    expected: tuple[float, ...]  # of each arm, by the declared shares
    mismatch_p: float
    with_metric: int  # units that have the primary metric
    compared: tuple[Compared, ...]

    @property
    def is_hidden(self) -> bool:
        """Whether the split is not what was declared."""
        return self.mismatch_p < MISMATCH


def analyse(declared: Declaration, evidence: Evidence, *, started_s: float, until_s: float) -> Analysis:
    """The analysis as it stands at `until_s`."""
    counts = np.zeros((len(evidence.strata), len(evidence.arms)), dtype=int)
    np.add.at(counts, (evidence.stratum, evidence.arm), 1)
    shares = np.array([stratum.shares_bp for stratum in evidence.strata]).reshape(counts.shape)
    expected = (counts.sum(1, keepdims=True) * shares / shares.sum(1, keepdims=True)).sum(0)
    p_mismatch = mismatch_p_value(counts.tolist(), shares.tolist())
    arrivals = arrivals_of(evidence.streams[0])
    numbers = range(1, len(evidence.arms)) if p_mismatch >= MISMATCH else ()
    return Analysis(
        units=tuple(int(n) for n in counts.sum(0)),
        expected=tuple(float(n) for n in expected),
        mismatch_p=p_mismatch,
        with_metric=len(arrivals),
        compared=tuple(_compared(declared, evidence, arm, arrivals, started_s, until_s) for arm in numbers),
    )


def _seen(
    metric: Metric, stream: Stream, evidence: Evidence, arm: int, until_s: float, *, adjusted: bool
) -> Difference | None:
    """The difference by a time; None with too few units, or while nothing varies."""
    strata = parts_at(metric, stream, evidence, arm, until_s, adjusted=adjusted)
    if any(sum(float(pair[side].n) for pair in strata) < LEAST_UNITS for side in (0, 1)):
        return None
    found = difference(strata, share=metric.is_share)
    return found if float(found.spread) > 0 else None


def _look(found: Difference, reach: float, at_s: float, units: int, planned: int = 0) -> Look:
    estimate = float(found.estimate)
    return Look(
        at_s=at_s,
        units=units,
        control=float(found.control),
        treatment=float(found.treatment),
        low=estimate - reach,
        high=estimate + reach,
        found=found,
        planned=planned,
    )


def _compared(
    declared: Declaration, evidence: Evidence, arm: int, arrivals: Floats, started_s: float, until_s: float
) -> Compared:
    if declared.max_units is None:
        looks = _sequence(declared, evidence, arm, arrivals, until_s)
    else:
        looks = _planned_looks(declared, evidence, arm, arrivals)
    compared = Compared(evidence.arms[arm], tuple(looks), _guardrails(declared, evidence, arm, until_s))
    if compared.deciding is not None and compared.deciding.decides:
        return compared
    more = _more_units(declared, evidence, arm, compared.deciding, len(arrivals))
    return Compared(
        compared.version, compared.looks, compared.guardrails, more, _more_s(arrivals, more, started_s, until_s)
    )


def _sequence(declared: Declaration, evidence: Evidence, arm: int, arrivals: Floats, until_s: float) -> list[Look]:
    """The sequence's curve: looks at equal steps of units, and the one now."""
    steps = np.unique(np.linspace(0, len(arrivals), _LOOKS, endpoint=False).astype(int)[1:])
    looks: list[Look] = []
    for at_s in (*(float(arrivals[step - 1]) for step in steps if step > 0), until_s):
        found = _seen(declared.primary, evidence.streams[0], evidence, arm, at_s, adjusted=True)
        if found is not None:
            reach = radius(float(found.spread), alpha=1 - declared.level, effect=declared.primary.minimum_effect)
            looks.append(_look(found, reach, at_s, int(np.searchsorted(arrivals, at_s, side="right"))))
    return looks


def _planned_looks(declared: Declaration, evidence: Evidence, arm: int, arrivals: Floats) -> list[Look]:
    """The planned looks that are complete, with repeated confidence intervals (Jennison and Turnbull, 1989)."""
    assert declared.max_units is not None
    metric, stream = declared.primary, evidence.streams[0]
    seen: list[tuple[int, int, float, Difference]] = []
    alike: list[float] = []
    before: Floats | None = None
    for number in range(1, declared.looks + 1):
        needed = math.ceil(number * declared.max_units / declared.looks)
        if needed > len(arrivals):
            break
        at_s = float(arrivals[needed - 1])
        found = _seen(metric, stream, evidence, arm, at_s, adjusted=True)
        if found is None:
            continue
        seen.append((number, needed, at_s, found))
        pulls = pulls_at(metric, stream, evidence, arm, at_s, float(found.slope))
        if before is not None:
            # Where every unit has the same value none has moved the estimate: such a look is like no other.
            squares = float((before @ before) * (pulls @ pulls))
            alike.append(float(before @ pulls) ** 2 / squares if squares > 0 else 0.0)
        before = pulls
    bounds = boundaries([number / declared.looks for number, _, _, _ in seen], SPENDABLE * (1 - declared.level), alike)
    return [
        _look(found, bound * math.sqrt(float(found.spread)), at_s, needed, number)
        for bound, (number, needed, at_s, found) in zip(bounds, seen, strict=True)
    ]


def _guardrails(declared: Declaration, evidence: Evidence, arm: int, until_s: float) -> tuple[Guarded, ...]:
    """Each by its own sequence, whatever the primary metric is looked at with: harm may be seen at any time."""
    found: list[Guarded] = []
    for metric, stream in zip(declared.guardrails, evidence.streams[1:], strict=True):
        seen = _seen(metric, stream, evidence, arm, until_s, adjusted=False)
        if seen is None:
            found.append(Guarded(metric, metric.margin, None, 1.0))
            continue
        spread, estimate = float(seen.spread), float(seen.estimate)
        beyond = (estimate if metric.lower_is_better else -estimate) - metric.margin
        look = _look(seen, radius(spread, alpha=1 - declared.level, effect=metric.margin), until_s, 0)
        found.append(
            Guarded(metric, metric.margin, look, p_value(beyond, spread, effect=metric.margin) if beyond > 0 else 1.0)
        )
    corrected = holm([guarded.p_harm for guarded in found])
    return tuple(
        Guarded(one.metric, one.margin, one.look, one.p_harm, p <= 1 - declared.level)
        for one, p in zip(found, corrected, strict=True)
    )


def _more_units(declared: Declaration, evidence: Evidence, arm: int, look: Look | None, units: int) -> int | None:
    """How many more units an experiment like this one is likely to need; 0: it has had them."""
    if declared.max_units is not None:
        return max(0, declared.max_units - units)
    if look is None:
        return None
    whole = sum(declared.arms.values())
    shares = (declared.arms[evidence.arms[0]] / whole, declared.arms[evidence.arms[arm]] / whole)
    if declared.mode == "bandit":
        shares = (1 / len(evidence.arms), 1 / len(evidence.arms))
    spread = unit_spread((float(look.found.variance_control), float(look.found.variance_treatment)), shares)
    effect = declared.primary.minimum_effect
    return max(0, sequence_units(spread, effect, alpha=1 - declared.level, power=declared.power) - units)


def _more_s(arrivals: Floats, more: int | None, started_s: float, until_s: float) -> float | None:
    """How long so many more units take to come, at the pace since the start."""
    if not more or until_s <= started_s or len(arrivals) == 0:
        return None
    ends = np.linspace(started_s, until_s, _SPANS + 1)[1:]
    seen = [int(n) for n in np.searchsorted(arrivals, ends, side="right")]
    spans = spans_until(len(arrivals) + more, seen)
    return None if spans is None else (spans - _SPANS) * (until_s - started_s) / _SPANS
