"""Where a request goes: from the model a client asked for to the versions that may answer it, and from those to an
engine; pure.

The version is `assign(route, key)`, and a key that is held out of the split counts for no arm. When no engine can serve
the version, the champion answers, then any arm that carries traffic; an arm of weight 0 never does, because it may be
staged and not yet approved. A pinned version has no stand-in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

import msgspec

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import ApiKey, Route, parse_version_name
from tuneloop.registry.routes.assignment import assign, held_out, key_hash, overridden
from tuneloop.serve.gateway.choice import choose
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.snapshot import Snapshot, Target


class Plan(msgspec.Struct, frozen=True):
    """Which versions may answer, the preferred one first."""

    route: Route
    assigned: int | None  # None: the split had no say: a version is pinned, the key's own, or the key is held out
    versions: tuple[int, ...]


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
        orders = snapshot.orders[model]
        if (given := overridden(route, unit)) is not None:
            return Plan(route, None, orders[given])
        if route.holdout_bp and held_out(route, key_hash(unit)):
            return Plan(route, None, orders[route.champion])
        assigned = assign(route, unit)
        return Plan(route, assigned, orders[assigned])
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
    versions: Sequence[int],
    load: Callable[[str], int],
    *,
    avoid: Collection[str] = (),
    shun: Collection[str] = (),
    never: str = "",
    draw: Callable[[], float] = random.random,
    messages: Sequence[tuple[str, str]] = (),
    allowance: int = 0,
) -> Target | None:
    """An engine for the first version that has one, as `choice.choose` says; None when no engine serves any of them.

    Engines in `avoid` are taken only when there is no other way, slots in `shun` only when no other has the version,
    the slot `never` not at all.
    """
    targets = snapshot.targets
    for shunned in (avoid, ()):
        for version in versions:
            able: Sequence[Target] = targets.get((model, version), ())
            if shunned or never:
                able = [target for target in able if target.engine not in shunned and target.slot != never]
            if shun and len(able) > 1:
                able = [target for target in able if target.slot not in shun] or able
            if able:
                return able[0] if len(able) == 1 else choose(able, load, draw, messages, allowance)
        if not avoid:
            break
    return None
