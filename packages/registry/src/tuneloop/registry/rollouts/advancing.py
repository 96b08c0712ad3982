"""Going on with one rollout whose lease is held: look, decide, and write what follows as one transaction.

The route decides what is real. A revision that somebody else wrote and that moves anybody pauses the rollout; one that
moves nobody (keys with a version of their own, something staged) does not. What hinders a look, damage for example, is
said on the rollout like an inconclusive check, and pauses it once it has waited as long as it may.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from tuneloop.registry.errors import (
    Conflict,
    DatabaseAway,
    InvalidInput,
    NotFound,
    Refused,
    TuneloopError,
    Unavailable,
)
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Check, GateReport, Route
from tuneloop.registry.rollouts.judging import judgement, trial_of
from tuneloop.registry.rollouts.rollout import (
    Action,
    Hold,
    Pause,
    Position,
    Raise,
    Rollout,
    RolloutState,
    Ship,
    TakeBack,
    decide,
    who_gets_what,
)
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback

_KEEP_EVERY_S = 5.0  # how old the judgement that people read may be
_log = logging.getLogger(__name__)


def go_on(registry: Registry, held: Rollout, *, controller: str) -> None:
    """Make at most one change of the route for a rollout that this controller holds.

    Raises:
        Conflict: somebody changed the route or the rollout meanwhile; the next look sees what.
        Unavailable: the database is away; or a gateway is late to follow a change, which is written.
        Exception: one that nobody foresaw; it is said on the rollout, too.
    """
    try:
        _go_on(registry, held, controller)
    except (Conflict, Unavailable):
        raise
    except TuneloopError as error:
        _hindered(registry, held, str(error))
    except Exception as error:
        _hindered(registry, held, f"an error that nobody foresaw ({type(error).__name__}): the controller's log has it")
        raise


def _go_on(registry: Registry, held: Rollout, controller: str) -> None:
    route = registry.routes.current(held.model)
    if route.split.get(held.version) == FULL_SHARE_BP:
        said = f"{route.by} gave it everything in revision {route.revision}: {route.reason}"
        _end(registry, held, RolloutState.SHIPPED, said, route)
        return
    if route.revision != held.revision:
        if who_gets_what(route) != who_gets_what(registry.routes.at(held.model, held.revision)):
            said = f"{route.by} wrote revision {route.revision} ({route.split_text}, {route.reason!r}) meanwhile"
            _end(registry, held, RolloutState.PAUSED, said)
            return
        held = registry.rollouts.follow(held, route)
    report = judged(registry, held)
    look = _Look(registry, held, route, report, {"rollout": held.id, "controller": controller})
    try:
        look.act(decide(held.plan, Position(held.step, held.since), report, registry.clock()))
    except (Refused, NotFound, InvalidInput) as no:
        _end(registry, held, RolloutState.PAUSED, str(no), report=report)
    except DatabaseAway:  # the next look tries again: nobody waits for a person while a failing version serves
        raise
    except Unavailable as away:
        if registry.rollouts.get(held.id).revision != held.revision:  # it is written, a gateway is late
            raise
        _end(registry, held, RolloutState.PAUSED, str(away), report=report)


def judged(registry: Registry, rollout: Rollout) -> GateReport | None:
    """The judgement of a rollout's step as it stands now; None before the first step."""
    if rollout.step is None:
        return None
    trial = trial_of(registry, rollout.model, rollout.version)
    step = rollout.plan.steps[rollout.step]
    limits, named = step.limits(rollout.plan.limits), None if step.checks is None else tuple(step.checks)
    return judgement(registry, rollout.model, rollout.version, limits, trial, min_samples=step.min_samples, named=named)


def _hindered(registry: Registry, held: Rollout, why: str) -> None:
    """Say what hinders a look where people look, or pause with it once nothing was decided in time."""
    now = registry.rollouts.get(held.id)  # the look may have written before it failed
    if now.fencing_token != held.fencing_token:
        return
    at = registry.clock()
    report = not_judged(now.model, now.version, now.champion, at, why)
    if (waited_s := (at - now.since).total_seconds()) > now.plan.give_up_s:
        _end(registry, now, RolloutState.PAUSED, f"nothing decided after {waited_s:.0f} s: {why}", report=report)
    elif now.checks != report.checks:
        _log.warning("%s: %s", now.id, why)
        registry.rollouts.keep(now, report)


def not_judged(model: str, version: int, champion: int | None, at: datetime, why: str) -> GateReport:
    """What stands for a judgement where something hinders it."""
    check = Check(name="judgement", verdict="inconclusive", detail=why)
    return GateReport(model=model, version=version, champion=champion, at=at, checks=(check,))


@dataclass(frozen=True)
class _Look:
    """What a controller saw, and what it may do about it."""

    registry: Registry
    held: Rollout
    route: Route
    report: GateReport | None
    noted: Mapping[str, str]

    def act(self, action: Action) -> None:
        match action:
            case Hold():
                self._keep()
            case Raise(step):
                self._raise(step)
            case Ship():
                self._ship()
            case TakeBack(reason):
                self._take_back(reason)
            case Pause(reason):
                _end(self.registry, self.held, RolloutState.PAUSED, reason, report=self.report)

    def _keep(self) -> None:
        old_s = (self.registry.clock() - self.held.updated_at).total_seconds()
        if self.report is not None and (old_s > _KEEP_EVERY_S or not self.held.checks):
            self.registry.rollouts.keep(self.held, self.report)

    def _raise(self, step: int) -> None:
        held, route, share_bp = self.held, self.route, self.held.plan.steps[step].weight_bp
        split = {arm.version: 0 for arm in route.arms}
        split |= {held.version: share_bp, route.champion: FULL_SHARE_BP - share_bp}

        def follow(connection: Connection, written: Route) -> None:
            self.registry.rollouts.step(connection, held, step, written, self.report)

        set_route(
            self.registry,
            held.model,
            split,
            Change(held.by, held.reason),
            expected_revision=route.revision,
            action="rollout.step",
            noted=self.noted,
            follow=follow,
        )

    def _ship(self) -> None:
        def follow(connection: Connection, written: Route) -> None:
            self._over(connection, written, RolloutState.SHIPPED, "every check passed")

        promote(
            self.registry,
            self.held.model,
            self.held.version,
            Change(self.held.by, self.held.reason),
            expected_revision=self.route.revision,
            noted=self.noted,
            follow=follow,
        )

    def _take_back(self, reason: str) -> None:
        """Roll back, which rejects the retraining that made the version, so that the next may be asked for."""

        def follow(connection: Connection, written: Route) -> None:
            self._over(connection, written, RolloutState.ROLLED_BACK, reason)

        rollback(
            self.registry,
            self.held.model,
            Change(self.held.by, f"rollout failed: {reason}"),
            expected_revision=self.route.revision,
            noted=self.noted,
            follow=follow,
        )

    def _over(self, connection: Connection, written: Route, state: RolloutState, outcome: str) -> None:
        self.registry.rollouts.end(connection, self.held, state, outcome, report=self.report, route=written)


def _end(
    registry: Registry,
    held: Rollout,
    state: RolloutState,
    outcome: str,
    route: Route | None = None,
    *,
    report: GateReport | None = None,
) -> None:
    with registry.database.writing() as connection:
        registry.rollouts.end(connection, held, state, outcome, report=report, route=route)
