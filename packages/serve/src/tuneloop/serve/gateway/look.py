"""One look at the registry, part by part, and what follows from it for the view a gateway has.

A part that cannot be read leaves the others as fresh as they are. Routes, keys and guard policies only grow: one that
a gateway knows and the database does not show was lost, or cannot be read there, and stays in force. Nothing stays
silently. A guard policy that cannot be read and was never known is taken for the strict one of the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from traceback import clear_frames
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from tuneloop.registry import Registry
from tuneloop.registry.database import Rows
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.guard_policy import CurrentGuards, GuardPolicy, current_guards
from tuneloop.registry.nouns import ApiKey, EngineState, Route
from tuneloop.registry.routes.store import CurrentRoutes
from tuneloop.serve.gateway.link import cause_of
from tuneloop.serve.gateway.snapshot import LAST_KNOWN_GOOD, Snapshot

T = TypeVar("T")
PARTS = ("keys", "routes", "engines", "guards")


@dataclass(frozen=True)
class Look:
    """What the registry showed; None stands for a part that could not be read, `trouble` says why."""

    at: datetime
    keys: Sequence[ApiKey] | None
    routes: Mapping[str, Route] | None
    engines: Sequence[EngineState] | None
    guards: CurrentGuards | None
    trouble: Mapping[str, str]


@dataclass(frozen=True)
class Followed:
    """The view after a look; None while a part of it has never been read."""

    view: Snapshot | None
    trouble: Mapping[str, str]  # part → why (some of) it is as it was known last
    lost_models: frozenset[str] = frozenset()


def look(registry: Registry, at: datetime) -> Look:
    """Read every part, whatever becomes of the others.

    Raises:
        Unavailable: the database does not answer.
        SQLAlchemyError: it refuses everything.
    """
    failed: dict[str, Exception] = {}
    seen = Look(
        at=at,
        keys=_read("keys", registry.keys.all, failed),
        routes=_read("routes", registry.routes.current_all, failed),
        engines=_read("engines", registry.fleet.engines, failed),
        guards=_read("guards", lambda: current_guards(registry.database), failed),
        trouble={},
    )
    if len(failed) == len(PARTS) and all(isinstance(e, Unavailable | SQLAlchemyError) for e in failed.values()):
        raise failed["keys"]
    trouble = {part: f"the {part} cannot be read: {cause_of(error)}" for part, error in failed.items()}
    for part, found in (("keys", seen.keys), ("engines", seen.engines)):
        if isinstance(found, Rows) and found.unreadable:
            trouble[part] = _few(found.unreadable)
    if isinstance(seen.routes, CurrentRoutes) and seen.routes.unreadable:
        trouble["routes"] = _few(list(seen.routes.unreadable.values()))
    if seen.guards is not None and seen.guards.unreadable:
        trouble["guards"] = _few(list(seen.guards.unreadable.values()))
    return replace(seen, trouble=trouble)


def follow(known: Snapshot | None, seen: Look, *, spare_engines: bool) -> Followed:
    """The view that follows from the known one and a look; pure.

    `spare_engines` keeps engines that only the known view has: they could not beat while the database was away.
    """
    trouble = dict(seen.trouble)
    if known is None:
        if seen.keys is None or seen.routes is None or seen.engines is None or seen.guards is None:
            return Followed(None, trouble)
        guards = _guards({}, seen.guards, trouble)
        return Followed(Snapshot.of(seen.at, seen.routes, seen.engines, seen.keys, guards), trouble)
    keys, routes, engines = seen.keys, seen.routes, seen.engines
    if keys is None:
        keys = known.keys
    if routes is None:
        routes = known.routes
    if engines is None:
        engines = known.engines
    shown = {key.id for key in keys}
    lost_keys = [key for key in known.keys if key.id not in shown and key.usable(seen.at)]
    if lost_keys:
        _tell(trouble, "keys", _lost(f"API key {key.id}" for key in lost_keys))
    lost_routes = {model: route for model, route in known.routes.items() if _newest(routes, model) < route.revision}
    if lost_routes:
        names = (
            f"{model} revision {route.revision}"
            + (f" (there is only {found})" if (found := _newest(routes, model)) else "")
            for model, route in lost_routes.items()
        )
        _tell(trouble, "routes", _lost(names))
    if spare_engines:
        here = {engine.id for engine in engines}
        engines = [*engines, *(engine for engine in known.engines if engine.id not in here)]
    guards = _guards(known.guards, seen.guards, trouble)
    view = Snapshot.of(seen.at, {**routes, **lost_routes}, engines, [*keys, *lost_keys], guards)
    return Followed(view, trouble, frozenset(lost_routes))


def _guards(
    known: Mapping[str, GuardPolicy], seen: CurrentGuards | None, trouble: dict[str, str]
) -> Mapping[str, GuardPolicy]:
    """The guard policies in force: a model never loses its guards because their policy cannot be read."""
    if seen is None:
        return known
    if lost := [model for model in known if model not in seen and model not in seen.unreadable]:
        _tell(trouble, "guards", _lost(f"the guard policy of {model}" for model in lost))
    return {**dict.fromkeys(seen.unreadable, GuardPolicy()), **known, **seen}


def _read(part: str, call: Callable[[], T], failed: dict[str, Exception]) -> T | None:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 (whatever a row provokes is told as the trouble of its part)
        # A SELECT that was not read to its end would keep SQLite's snapshot of this moment on its pooled connection:
        # later reads there would see nothing new, and writes would find the database locked.
        clear_frames(error.__traceback__)
        failed[part] = error
        return None


def _newest(routes: Mapping[str, Route], model: str) -> int:
    return routes[model].revision if model in routes else 0


def _lost(what: Iterable[str]) -> str:
    return (
        f"the database has lost {_few(list(what))}, or cannot read it; if it was replaced on purpose, stop this "
        f"gateway, delete its {LAST_KNOWN_GOOD} and start it again"
    )


def _tell(trouble: dict[str, str], part: str, why: str) -> None:
    trouble[part] = f"{trouble[part]}; {why}" if part in trouble else why


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
