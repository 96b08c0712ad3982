"""Bandits that step by themselves: a controller moves the shares of each that declared how often.

A span of its cadence gets one step at most, whoever takes it: a controller, another one, or a person. What tells them
apart is the route's revision, which a step replaces by compare-and-swap after it has looked for one of this span in the
audit log. A span that was missed is not made up for. A look reads every request since the start, once for each span and
controller, and puts down that it has looked, so that the monitor can tell a step that nobody sees to.
"""

from __future__ import annotations

from datetime import datetime

from tuneloop.registry.errors import Refused
from tuneloop.registry.experiments import cadence
from tuneloop.registry.experiments.declaration import Experiment
from tuneloop.registry.experiments.store import STEP
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Route
from tuneloop.registry.routes.promotion import Change


class Stepping:
    """Takes the steps that are due."""

    def __init__(self, registry: Registry, owner: str) -> None:
        self._registry = registry
        self._owner = owner
        self._looked: dict[str, datetime] = {}  # experiment → the span that needs no other look of this controller

    def stepping(self) -> list[str]:
        """The running bandits that step by themselves."""
        rows = self._registry.experiments.all_running()
        self._registry.database.tell(rows.unreadable)
        return [one.id for one in rows if one.declaration.step_every_s is not None]

    def look(self, experiment_id: str) -> None:
        """Take a bandit's step if it is due.

        Raises:
            Conflict: somebody changed the route meanwhile; the next look sees what.
            Refused: its results are hidden, or an arm is not approved any more; it is asked again in the next span.
            Unavailable: the database is away; or a gateway is late to follow a change, which is written.
        """
        running, now = self._registry.experiments.get(experiment_id), self._registry.clock()
        began = cadence.span(running, now)
        if began is None:
            return
        try:
            if self._looked.get(experiment_id) != began and not self._settled(running, began, now):
                return
        except Refused:
            self._put_down(running, began, now)
            raise
        self._put_down(running, began, now)

    def _settled(self, running: Experiment, began: datetime, now: datetime) -> bool:
        """See to the step of a span; whether nothing is left to do in it."""
        registry = self._registry
        route = registry.routes.current(running.model)  # before the log: a step written since then is a lost race
        if self._is_taken(running, began, now) or not _gives_its_arms(route, running):
            return True
        from tuneloop.registry.experiments import conduct  # noqa: PLC0415 (SciPy, for a controller with a bandit only)

        running, seen, wanted = conduct.step(registry, running.id)
        if seen.revision != route.revision:
            return False
        if wanted.moves(route):
            change = Change(running.by, f"a step every {running.declaration.step_every_s:g} s was declared")
            conduct.move(registry, running, route, wanted, change, noted={"controller": self._owner})
        return True

    def _put_down(self, running: Experiment, began: datetime, now: datetime) -> None:
        self._looked[running.id] = began
        if not cadence.falls_in(running, began, running.looked_at, now):
            self._registry.experiments.looked(running.id, now)

    def _is_taken(self, running: Experiment, began: datetime, now: datetime) -> bool:
        steps = self._registry.audit.entries(running.model, limit=1, action=STEP).whole()
        mine = bool(steps) and steps[0].detail.get("experiment") == running.id
        return mine and cadence.falls_in(running, began, steps[0].at, now)


def _gives_its_arms(route: Route, running: Experiment) -> bool:
    """Whether the split is still between its arms: what a person took away is not given back."""
    return {arm.version for arm in route.arms if arm.weight_bp > 0} == set(running.declaration.arms)
