"""Where a request goes: from the model a client asked for to the versions that may answer it, and from those to an
engine; pure.

The version is `assign(route, key)`, and a key that is held out of the split counts for no arm. When no engine can serve
the version, the champion answers, then any arm that carries traffic; an arm of weight 0 never does, because it may be
staged and not yet approved. A pinned version has no stand-in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import ApiKey, EngineState, Route, parse_version_name, version_name
from tuneloop.registry.routes.assignment import assign, held_out, key_hash, overridden
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Plan:
    """Which versions may answer, the preferred one first."""

    route: Route
    assigned: int | None  # None: the split had no say: a version is pinned, the key's own, or the key is held out
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """One version on one engine."""

    version: int
    name: str
    engine: str
    url: str

    @property
    def slot(self) -> str:
        """The key of `GatewayState.in_flight`."""
        return f"{self.engine}|{self.name}"


def plan(snapshot: Snapshot, asked: str, key: ApiKey, unit: str) -> Plan:
    """Find the route of the model and the version for the sticky key `unit`.

    Raises:
        ApiError: the model or version is unknown, or this API key may not use it.
    """
    model, pinned = asked, None
    if "@" in asked:
        try:
            model, pinned = parse_version_name(asked)
        except InvalidInput as error:
            raise unknown_model(str(error)) from None
    if key.models and model not in key.models:
        raise ApiError(
            403, f"this API key may not use the model {model[:100]!r}", code="model_not_allowed", param="model"
        )
    route = snapshot.routes.get(model)
    if route is None:
        raise unknown_model(f"the model {model[:100]!r} does not exist; GET /v1/models lists what there is")
    if pinned is None:
        others = (route.champion, *(arm.version for arm in route.arms if arm.weight_bp))
        if (given := overridden(route, unit)) is not None:
            return Plan(route, None, tuple(dict.fromkeys((given, *others))))
        if route.holdout_bp and held_out(route, key_hash(unit)):
            return Plan(route, None, tuple(dict.fromkeys((route.champion, *others))))
        assigned = assign(route, unit)
        return Plan(route, assigned, tuple(dict.fromkeys((assigned, *others))))
    if not key.may_pin:
        raise ApiError(
            403,
            f"this API key may not choose a version; ask for {model!r}, or make a key that may pin",
            code="pin_not_allowed",
            param="model",
        )
    if pinned not in route.split:
        raise unknown_model(f"{asked} is not in the route of {model} ({route.split_text})")
    return Plan(route, None, (pinned,))


def unknown_model(message: str) -> ApiError:
    """404, as OpenAI's API says it."""
    return ApiError(404, message, code="model_not_found", param="model")


def pick(
    snapshot: Snapshot,
    model: str,
    versions: Iterable[int],
    load: Callable[[str], int],
    *,
    avoid: Collection[str] = (),
    never: str = "",
) -> Target | None:
    """The least loaded engine for the first version that has one; None when no engine serves any of them.

    `load` gives the requests in flight on an engine; engines in `avoid` are taken only when there is no other way, the
    slot `never` not at all.
    """
    versions = tuple(versions)
    for shunned in (avoid, ()):
        for version in versions:
            name = version_name(model, version)
            able = [
                engine
                for engine in snapshot.serving.get(name, ())
                if engine.id not in shunned and f"{engine.id}|{name}" != never
            ]
            if able:
                best: EngineState = min(able, key=lambda engine: load(engine.id))
                return Target(version, name, best.id, best.url)
        if not avoid:
            break
    return None
