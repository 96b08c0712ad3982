"""The watch over MLflow's aliases: they mirror the routes, and what somebody moves there is noticed and dealt with.

By each model's rollout policy a foreign move is reverted, adopted (a promotion with all its gates) or only reported; it
is on record in any case, once, however many watch. MLflow slow or away is said once, and asked less often meanwhile.
Adopting a version that an engine has to load first takes as long as that does, and the other models wait for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from tuneloop.registry import audit
from tuneloop.registry.aliases.accounting import (
    Accounted,
    Aliases,
    LateMirror,
    Move,
    Moved,
    Pending,
    Settled,
    Unfinished,
    compare,
)
from tuneloop.registry.errors import Conflict, TuneloopError, Unavailable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Route, version_name
from tuneloop.registry.policies import RolloutPolicy
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.tables import aliases
from tuneloop.registry.versions.deadline import mlflow_within

ASK_TIMEOUT_S = 4.0  # with a pause of at most 5 s, a move is seen within 10
LATE_MIRROR_S = 15.0  # how long after its revision whoever wrote that may still move the aliases
LONGEST_PAUSE_S = 60.0
TOGETHER = 100  # models that MLflow is asked of in one call, at most: a server reads all versions of each
ACTOR = "controller"
_log = logging.getLogger(__name__)


class AliasWatch:
    """Looks at every model that has a route."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._away = 0  # looks in a row that MLflow did not answer
        self._last = ""  # the last model that was seen where a look's time ran out: the next goes on behind it
        self._together = TOGETHER  # fewer where so many have taken a look's whole time

    def pause_s(self, every_s: float) -> float:
        """How long to wait before the next look."""
        return min(every_s * 2**self._away, LONGEST_PAUSE_S) if self._away else every_s

    def turn(self) -> None:
        """One look at all of them, or at as many as MLflow tells of in time; the next look goes on from there.

        Raises:
            Unavailable: MLflow or the database did not answer.
        """
        registry = self._registry
        routes = sorted(
            registry.routes.current_all().values(), key=lambda route: (route.model <= self._last, route.model)
        )
        if not routes:
            return
        found: dict[str, Aliases | None] = {}
        before = self._accounted()
        try:
            mlflow_within(registry, lambda: self._see(routes, found), ASK_TIMEOUT_S)
        except Unavailable:
            if not found:
                self._away = min(self._away + 1, 10)
                asked = min(self._together, len(routes))  # it may have been these: the next look asks others, and fewer
                self._last, self._together = routes[asked - 1].model, max(1, asked // 2)
                raise
        self._away, told = 0, found.copy()
        self._last = list(told)[-1] if len(told) < len(routes) else ""
        seen = {model: aliases for model, aliases in told.items() if aliases is not None}
        # In this order: whatever of ours is seen there was written for a route that is read here.
        accounted, newest = self._accounted(), registry.routes.current_all()
        # Where another watch wrote meanwhile, what was seen may be what it has dealt with: the next turn looks again.
        settled = [model for model in seen if model in newest and accounted.get(model) == before.get(model)]
        failures = []
        for model in settled:
            try:
                self._look(newest[model], seen[model], accounted.get(model))
            except TuneloopError as error:  # one model's trouble must not hide another's
                failures.append(f"{model}: {error}")
        if failures:
            raise Unavailable(f"MLflow's aliases are not what they should be: {'; '.join(failures)}")

    def _see(self, routes: Sequence[Route], found: dict[str, Aliases | None]) -> None:
        """Put down what MLflow holds, so many models at a time, until the time is over; None: it has no such model."""
        began = asked_at = time.monotonic()
        start = 0
        while start < len(routes) and asked_at - began <= ASK_TIMEOUT_S:
            asked = routes[start : start + self._together]
            there = self._registry.versions.aliases_of(asked)
            for route in asked:
                found[route.model] = there.get(route.model)
            start, took_s, asked_at = start + len(asked), time.monotonic() - asked_at, time.monotonic()
            if took_s < ASK_TIMEOUT_S / 16:
                self._together = min(2 * self._together, TOGETHER)
            elif took_s > ASK_TIMEOUT_S / 4:
                self._together = max(1, self._together // 2)

    def _look(self, route: Route, seen: Aliases, accounted: Accounted | None) -> None:
        ours = () if seen == Aliases.of(route) else self._ours(route, accounted)
        match compare(seen, route, ours, accounted):
            case Settled(back):
                # Between moving back and putting that on record a watch may be killed, or overtaken by this one.
                reverted = "by policy or by whoever moved it" if back else ""
                if accounted is None or (accounted.revision, accounted.pending) != (route.revision, ""):
                    self._account(route, accounted, seen, "", back, reverted=reverted)
            case LateMirror():
                self._mirror(route)
            case Moved(moves):
                policy = self._registry.policies.get(route.model, RolloutPolicy).aliases
                noted = self._account(route, accounted, seen, policy, moves)
                if noted is not None:
                    self._deal_with(route, seen, noted, moves)
            case Unfinished(moves) if accounted is not None:
                self._deal_with(route, seen, accounted, moves)

    def _ours(self, route: Route, accounted: Accounted | None) -> list[Route]:
        """The revisions whose mirror may be the one that is seen: all since the last accounting, and those that were
        superseded lately, since who wrote them may still be moving the aliases."""
        first = accounted.revision if accounted else 0
        recent = self._registry.clock() - timedelta(seconds=LATE_MIRROR_S)
        history = self._registry.routes.history(route.model).whole()
        return [r for i, r in enumerate(history) if r.revision >= first or i == 0 or history[i - 1].at > recent]

    def _deal_with(self, route: Route, seen: Aliases, accounted: Accounted, moves: Sequence[Move]) -> None:
        refused = ""
        if accounted.pending == "adopt":
            refused = self._adopted(route, moves)
            if not refused:
                self._account(route, accounted, seen, "")
                return
        if accounted.pending != "report":
            self._mirror(self._registry.routes.current(route.model))
            self._account(route, accounted, Aliases.of(route), "", moves, reverted=refused or "by policy")

    def _adopted(self, route: Route, moves: Sequence[Move]) -> str:
        """Make the version that `champion` was moved to the champion; why not, where that is refused."""
        to = next((move.now for move in moves if move.alias == "champion"), None)
        if to is None:
            return "only a champion can be adopted, and none was named"
        reason = f"somebody moved the alias champion to {version_name(route.model, to)} in MLflow"
        try:
            promote(self._registry, route.model, to, Change(ACTOR, reason), expected_revision=route.revision)
        except Conflict:
            raise
        except TuneloopError as error:
            if self._registry.routes.current(route.model).champion == to:  # it is written, a gateway is late
                raise
            return str(error)
        return ""

    def _mirror(self, route: Route) -> None:
        mlflow_within(self._registry, lambda: self._registry.versions.mirror(route), ASK_TIMEOUT_S)

    def _accounted(self) -> dict[str, Accounted]:
        with self._registry.database.reading() as connection:
            rows = connection.execute(sa.select(aliases)).mappings().all()
        return {
            row["model"]: Accounted(
                Aliases(row["champion"], row["challenger"]), row["revision"], row["pending"], row["token"]
            )
            for row in rows
        }

    def _account(
        self,
        route: Route,
        before: Accounted | None,
        seen: Aliases,
        pending: Pending,
        moves: Sequence[Move] = (),
        *,
        reverted: str = "",
    ) -> Accounted | None:
        """Write down what is seen and what is to be done, on record with it; None where another watch was first."""
        database, now = self._registry.database, self._registry.clock()
        noted = Accounted(seen, route.revision, pending, before.token + 1 if before else 1)
        row: dict[str, Any] = {"champion": seen.champion, "challenger": seen.challenger, "revision": route.revision}
        row |= {"pending": pending, "token": noted.token, "at": now}
        with database.writing() as connection:
            if before is None:
                insert = database.insert(aliases).values(model=route.model, **row)
                insert = insert.on_conflict_do_nothing(index_elements=["model"])
                done = connection.execute(insert.returning(aliases.c.model)).first() is not None
            else:
                here = sa.and_(aliases.c.model == route.model, aliases.c.token == before.token)
                done = connection.execute(sa.update(aliases).where(here).values(**row)).rowcount == 1
            if done and moves:
                # Who moved it MLflow does not say; who moved it back is known.
                actor, action = (ACTOR, "alias.reverted") if reverted else ("unknown", "alias.moved")
                detail = _detail(route, moves, pending, reverted)
                audit.record(connection, at=now, actor=actor, action=action, subject=route.model, detail=detail)
                _log.warning("%s: %s", route.model, detail["reason"])
        return noted if done else None


def _detail(route: Route, moves: Sequence[Move], policy: Pending, reverted: str) -> dict[str, Any]:
    said = "; ".join(
        f"{move.alias} was moved from {_version(route, move.was)} to {_version(route, move.now)} in MLflow"
        for move in moves
    )
    return {
        "moved": {move.alias: {"was": move.was, "is": move.now} for move in moves},
        "revision": route.revision,
        "policy": policy or None,
        "reason": f"moved back, {reverted}" if reverted else said,
    }


def _version(route: Route, version: int | None) -> str:
    return "nothing" if version is None else version_name(route.model, version)
