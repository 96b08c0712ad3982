"""Bandits that step by themselves: a controller moves the shares of each that declared how often.

Since the start time is cut into spans of the declared length, and each but the first gets one step at most, whoever
takes it: a controller, another one, or a person. What tells them apart is the route's revision, which a step replaces
by compare-and-swap after it has looked for one of this span in the audit log. A span that was missed is not made up
for. A look reads every request since the start, once for each span and controller.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from tuneloop.registry.errors import Refused
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
        registry = self._registry
        running = registry.experiments.get(experiment_id)
        span = _span(running, registry.clock())
        if span is None or self._looked.get(experiment_id) == span:
            return
        route = registry.routes.current(running.model)  # before the log: a step written since then is a lost race
        if self._is_taken(running, span) or not _gives_its_arms(route, running):
            self._looked[experiment_id] = span
            return
        from tuneloop.registry.experiments import conduct  # noqa: PLC0415 (SciPy, for a controller with a bandit only)

        try:
            running, seen, wanted = conduct.step(registry, experiment_id)
            if seen.revision == route.revision and wanted.moves(route):
                change = Change(running.by, f"a step every {running.declaration.step_every_s:g} s was declared")
                conduct.move(registry, running, route, wanted, change, noted={"controller": self._owner})
        except Refused:
            self._looked[experiment_id] = span
            raise
        if seen.revision == route.revision:
            self._looked[experiment_id] = span

    def _is_taken(self, running: Experiment, span: datetime) -> bool:
        steps = self._registry.audit.entries(running.model, limit=1, action=STEP).whole()
        return bool(steps) and steps[0].detail.get("experiment") == running.id and steps[0].at >= span


def _span(running: Experiment, now: datetime) -> datetime | None:
    """When the present span began; None: it is the first, or nothing steps by itself."""
    every_s = running.declaration.step_every_s
    if every_s is None or running.started_at is None or running.stopped_at is not None:
        return None
    number = (now - running.started_at) // timedelta(seconds=every_s)
    return running.started_at + number * timedelta(seconds=every_s) if number > 0 else None


def _gives_its_arms(route: Route, running: Experiment) -> bool:
    """Whether the split is still between its arms: what a person took away is not given back."""
    return {arm.version for arm in route.arms if arm.weight_bp > 0} == set(running.declaration.arms)
