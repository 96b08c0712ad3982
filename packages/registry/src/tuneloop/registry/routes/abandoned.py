"""What a change of a route that was killed has left staged: taken out again, once nobody waits for it any more.

Between staging a version and giving it its share minutes may pass, and who dies meanwhile leaves it in the route: it
holds a slot of every engine. Nobody's share is touched by that, nor here. Who is not dead after all, only slower than
anybody may be, finds the route changed and stops. A rollout goes on with what it has staged by itself.
"""

from __future__ import annotations

from datetime import timedelta

from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Route
from tuneloop.registry.rollouts.rollout import OPEN
from tuneloop.registry.routes.staging import LOAD_TIMEOUT_S

ACTOR = "controller"
SLACK_S = 60.0  # beyond what engines are waited for, for everything else that a change does


class Abandoned:
    """Looks at every model that has a route, at each revision once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._settled: dict[str, int] = {}  # model → the revision that is known to leave nothing

    def turn(self) -> None:
        """Take out of the routes what was staged and left.

        Raises:
            Conflict: somebody changed a route meanwhile; the next turn looks again.
        """
        registry, rolling = self._registry, set[str]()
        waiting = [
            route
            for route in registry.routes.current_all().values()
            if self._settled.get(route.model) != route.revision and self._is_over(route)
        ]
        if waiting:
            rolling = {rollout.model for rollout in registry.rollouts.all(states=OPEN)}
        for route in waiting:
            if route.model not in rolling:
                self._undo(route)
                self._settled[route.model] = route.revision

    def _is_over(self, route: Route) -> bool:
        """Whether nobody can still be waiting for engines to load what is staged there."""
        longest_s = LOAD_TIMEOUT_S * len(route.arms) + SLACK_S
        return route.at + timedelta(seconds=longest_s) < self._registry.clock()

    def _undo(self, route: Route) -> None:
        registry = self._registry
        staged = registry.audit.entries(route.model, limit=1, action="route.stage").whole()
        if not staged or staged[0].detail.get("revision") != route.revision:
            return
        before = registry.routes.at(route.model, route.revision - 1)
        registry.routes.write(
            route.model,
            before.arms,
            by=ACTOR,
            reason=f"{staged[0].actor} staged it and did not go on: {route.reason}",
            expected_revision=route.revision,
            action="route.unstage",
            overrides=before.overrides,
            shadow=(before.shadow,) if before.shadow else (),
        )
