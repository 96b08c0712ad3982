"""Declaring, starting, moving and reporting an experiment on a registry: where statistics and stores meet.

The route is written before the experiment is started: killed in between, `start` finds the shares as declared and goes
on. A bandit's step is one compare-and-swap of the route; whoever changed it meanwhile wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import numpy as np
from sqlalchemy.engine import Connection

from tuneloop.registry.errors import InvalidInput, Refused, Unreadable
from tuneloop.registry.experiments.analysis import LEAST_UNITS, analyse
from tuneloop.registry.experiments.bandit import best_chances, shares_bp
from tuneloop.registry.experiments.contributed import arrivals_of, parts_at
from tuneloop.registry.experiments.declaration import Declaration, Experiment, ExperimentPlan, ExperimentState
from tuneloop.registry.experiments.effect import Part, difference, quantile_part, ratio_part
from tuneloop.registry.experiments.gather import Evidence, Stream, arms_of, gather, stream_of
from tuneloop.registry.experiments.planning import (
    fixed_power,
    fixed_units,
    sequence_units,
    spans_until,
    unit_spread,
)
from tuneloop.registry.experiments.report import Report, report_of
from tuneloop.registry.experiments.spending import inflation
from tuneloop.registry.experiments.store import STEP, another_runs
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Route, version_name
from tuneloop.registry.retention_policy import current_retention
from tuneloop.registry.routes.claims import claim_for_experiment, expect_no_rollout
from tuneloop.registry.routes.promotion import Change, set_route
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within

PLAN_DAYS = 14  # of recent traffic a plan is made from
_SPANS = 28
_LEAST_UNITS = 20  # with fewer, recent traffic says nothing about the variance


@dataclass(frozen=True)
class BanditStep:
    """What a bandit's step does: the chance of each arm to be the best, and the shares that follow."""

    chances: dict[int, float]
    split: dict[int, int]

    def moves(self, route: Route) -> bool:
        """Whether the route gives anybody another share than this."""
        return self.split != {version: route.split.get(version, 0) for version in self.split}


def settled(registry: Registry, declared: Declaration) -> Declaration:
    """A declaration as it is kept: its control named, every version known.

    Raises:
        NotFound: the model has no route, or a version does not exist.
        InvalidInput: no control is named, and the champion is none of the arms.
    """
    registry.check_model(declared.model)
    route = registry.route(declared.model)
    for version in declared.arms:
        if version not in route.split:
            mlflow_within(registry, partial(registry.versions.get, declared.model, version), LOOKUP_TIMEOUT_S)
    if declared.control is not None:
        return declared
    if route.champion not in declared.arms:
        raise InvalidInput(
            f"the champion {version_name(declared.model, route.champion)} is none of the arms; name the control, or "
            "give the champion a share"
        )
    return declared.model_copy(update={"control": route.champion})


def plan(registry: Registry, declared: Declaration) -> ExperimentPlan:
    """How many units the experiment needs and how long they take, from the model's recent traffic."""
    now = registry.clock()
    outcomes, opinions = registry.traffic.outcomes(declared.model, since=now - timedelta(days=PLAN_DAYS), until=now)
    sticky = [o for o in outcomes if declared.counts(o.key_source) and o.assigned_version is not None]
    if not sticky:
        return ExperimentPlan(days_seen=0.0, units_seen=0)
    units: dict[str, int] = {}
    for outcome in sticky:
        units.setdefault(outcome.key_hash, len(units))
    stream = stream_of(declared.primary, sticky, opinions, units)
    first_s, now_s = sticky[0].at.timestamp(), now.timestamp()
    days = (now_s - first_s) / 86_400
    arrivals = arrivals_of(stream)
    if len(arrivals) < _LEAST_UNITS or days <= 0:
        return ExperimentPlan(days_seen=days, units_seen=len(arrivals))
    part = _whole(declared, stream)
    variance = float(part.squares) / (float(part.n) - 1)
    seen = ExperimentPlan(
        days_seen=days, units_seen=len(arrivals), baseline=float(part.value), deviation=float(np.sqrt(variance))
    )
    if variance <= 0:
        return seen
    whole = sum(declared.arms.values())
    shares = [declared.arms[arm] / whole for arm in arms_of(declared)]
    sized = _sized(declared, unit_spread((variance, variance), (shares[0], min(shares[1:]))))
    ends = np.linspace(first_s, now_s, _SPANS + 1)[1:]
    spans = spans_until(sized[1], [int(n) for n in np.searchsorted(arrivals, ends, side="right")])
    update = {"fixed_units": sized[0], "units": sized[1], "power": sized[2]}
    return seen.model_copy(update=update | {"days": None if spans is None else spans * days / _SPANS})


def _sized(declared: Declaration, spread: float) -> tuple[int, int, float]:
    """Units of a fixed test, units as it will be looked at, and its power with those."""
    effect, alpha = declared.primary.minimum_effect, 1 - declared.level
    fixed = fixed_units(spread, effect, alpha=alpha, power=declared.power)
    if declared.max_units is None:
        return fixed, sequence_units(spread, effect, alpha=alpha, power=declared.power), declared.power
    fractions = [(look + 1) / declared.looks for look in range(declared.looks)]
    worth = declared.max_units / inflation(fractions, alpha, declared.power)
    return fixed, declared.max_units, fixed_power(spread, effect, worth, alpha=alpha)


def _whole(declared: Declaration, stream: Stream) -> Part:
    """All of recent traffic as one arm."""
    metric = declared.primary
    if metric.q is not None:
        return quantile_part(stream.value, stream.unit, metric.q)
    _, unit = np.unique(stream.unit, return_inverse=True)
    y, x = (np.bincount(unit, sums).astype(np.float64) for sums in (stream.value, stream.count))
    there = x > 0
    if metric.kind == "ratio":
        return ratio_part(y, x)
    return ratio_part(y[there] / x[there], np.ones(int(there.sum())))


def start(registry: Registry, experiment_id: str, change: Change) -> tuple[Experiment, Route]:
    """Give the arms their shares, where they have not got them, and start.

    Raises:
        Refused: it has started before, another one or a rollout is running, an arm is not approved, or the champion
            has no share.
        NotFound, Conflict, Unavailable: like `set_route`.
    """
    draft = registry.experiments.get(experiment_id)
    if draft.state is not ExperimentState.DRAFT:
        raise Refused(f"{draft.id} is {draft.state}, not draft: declare a new one to look again")
    if other := registry.experiments.running(draft.model):  # whose split must not be changed under it
        raise another_runs(other)
    with registry.database.reading() as connection:
        expect_no_rollout(connection, draft.model)
    route = registry.route(draft.model)
    if {arm.version: arm.weight_bp for arm in route.arms if arm.weight_bp > 0} != draft.declaration.arms:
        split = _split(route, draft.declaration.arms)
        route = set_route(
            registry,
            draft.model,
            split,
            change,
            expected_revision=route.revision,
            action="experiment.split",
            noted={"experiment": draft.id},
            follow=lambda connection, _: claim_for_experiment(registry.database, connection, draft.model),
        )
    started = registry.experiments.start(draft.id, revision=route.revision, by=change.by, reason=change.reason)
    return started, route


def step(registry: Registry, experiment_id: str) -> tuple[Experiment, Route, BanditStep]:
    """What a bandit's next shares would be, and the route they would change.

    Raises:
        Refused: it is no running bandit, or its results are hidden: the split is not what was declared.
    """
    running = registry.experiments.get(experiment_id)
    if running.declaration.mode != "bandit" or running.state is not ExperimentState.RUNNING:
        raise Refused(
            f"{running.id} is a {running.declaration.mode} and {running.state}; only a running bandit moves its shares"
        )
    declared, now, route = running.declaration, registry.clock(), registry.route(running.model)
    evidence = gather(registry, running, now)
    assert running.started_at is not None
    found = analyse(declared, evidence, started_s=running.started_at.timestamp(), until_s=now.timestamp())
    if found.is_hidden:
        raise Refused(
            f"units did not come to the arms as declared (p = {found.mismatch_p:.1g}): no shares follow from what they "
            f"say; `tuneloop experiment report {running.id}` says more"
        )
    return running, route, proposed(declared, evidence, now.timestamp(), seed=route.revision)


def proposed(declared: Declaration, evidence: Evidence, until_s: float, *, seed: int) -> BanditStep:
    """The next shares; as they were while an arm has under `LEAST_UNITS` units.

    Each treatment's difference from the control, stratum by stratum, is what its chance is drawn from: pooled, an arm
    that had most of its traffic in a bad hour would be blamed for the hour.
    """
    arms, found = arms_of(declared), []
    for arm in range(1, len(arms)):
        strata = parts_at(declared.primary, evidence.streams[0], evidence, arm, until_s, adjusted=True)
        units = [sum(float(pair[side].n) for pair in strata) for side in (0, 1)]
        if min(units) < LEAST_UNITS:
            return BanditStep({}, dict(zip(arms, evidence.strata[-1].shares_bp, strict=True)))
        seen = difference(strata, share=declared.primary.is_share)
        control, own = float(seen.variance_control) / units[0], float(seen.variance_treatment) / units[1]
        found.append((float(seen.estimate), float(seen.spread), own / (control + own)))
    # The differences have the control's error in common: it is drawn once.
    means = [0.0, *(estimate for estimate, _, _ in found)]
    errors = [max(spread * (1 - part) for _, spread, part in found), *(spread * part for _, spread, part in found)]
    rng = np.random.default_rng(seed)
    chances = best_chances(means, np.sqrt(errors).tolist(), lower_is_better=declared.primary.lower_is_better, rng=rng)
    return BanditStep(
        dict(zip(arms, chances, strict=True)), dict(zip(arms, shares_bp(chances, declared.floor_bp), strict=True))
    )


def take(registry: Registry, experiment: Experiment, route: Route, wanted: BanditStep, change: Change) -> Route:
    """A person's step: `move`, or where the shares stay as they are, put down that somebody has seen to it."""
    if wanted.moves(route):
        return move(registry, experiment, route, wanted, change)
    registry.experiments.looked(experiment.id, registry.clock())
    return route


def move(
    registry: Registry,
    experiment: Experiment,
    route: Route,
    wanted: BanditStep,
    change: Change,
    *,
    noted: Mapping[str, object] | None = None,
) -> Route:
    """Write a step's shares as the revision after `route`; `noted` goes with them into the audit log.

    Whoever takes it, a person too, has seen to this span: that is put down with it.

    Raises:
        Refused: the experiment was stopped meanwhile.
        Conflict, Refused, Unavailable: like `set_route`.
    """

    def follow(connection: Connection, _written: Route) -> None:
        registry.experiments.expect_running(connection, experiment.id)
        registry.experiments.looked_in(connection, experiment.id, registry.clock())

    chances = {str(version): round(chance, 4) for version, chance in wanted.chances.items()}
    return set_route(
        registry,
        experiment.model,
        _split(route, wanted.split),
        change,
        expected_revision=route.revision,
        action=STEP,
        noted={"experiment": experiment.id, "chances": chances, **(noted or {})},
        follow=follow,
    )


def report(registry: Registry, experiment_id: str) -> Report:
    """What an experiment says now, or said when it was stopped.

    Raises:
        Refused: it has not started.
    """
    found = registry.experiments.get(experiment_id)
    if found.started_at is None:
        raise Refused(
            f"{found.id} has not started: there is nothing to report; `tuneloop experiment start {found.id} --by YOU "
            "--reason WHY`"
        )
    until = found.stopped_at or registry.clock()
    evidence = gather(registry, found, until)
    analysed = analyse(found.declaration, evidence, started_s=found.started_at.timestamp(), until_s=until.timestamp())
    stops = registry.audit.entries(found.id, limit=1, action="experiment.stop") if found.stopped_at else []
    stopped_by = stops[0].actor if stops else None
    return report_of(found, evidence, analysed, until, stopped_by, _gone_until(registry, found.model, found.started_at))


def _gone_until(registry: Registry, model: str, started_at: datetime) -> datetime | None:
    """Until when requests since the start are older than their records may be; None: none is."""
    try:
        policy = current_retention(registry.database).of(model)
    except Unreadable:  # by such a one nothing is deleted, which the controller says
        return None
    until = policy.records_until(registry.clock())
    return until if until is not None and until >= started_at else None


def _split(route: Route, shares: dict[int, int]) -> dict[int, int]:
    """The shares as a whole route: who had a share and gets none is kept loaded, like what stood at 0."""
    if route.champion not in shares:
        raise Refused(
            f"the champion {version_name(route.model, route.champion)} is none of the arms and would lose its place; "
            "give it a share, or promote one of the arms first"
        )
    return {arm.version: 0 for arm in route.arms} | shares
