"""The control plane's document with an example of every operation, and what must have happened before each can be done.

What is drawn beside the examples meets whatever state those before it have left.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from registry.api.asked import READS, WHY, WRITES, begin, fail, let_learn, offer, pause
from registry.api.plane import DECLARED
from registry.experiment_traffic import NO_PLAN
from tests_support import alert_episode, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.access.roles import Role
from tuneloop.registry.api.app import routed
from tuneloop.registry.errors import Conflict
from tuneloop.registry.experiments.declaration import Declaration
from tuneloop.registry.policies import GatePolicy, RetrainingPolicy, RolloutPolicy
from tuneloop.registry.rollouts import steering
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.routes.promotion import Change, promote, set_route

ADA = Change("ada", "as it was", force=True)
_NAMED = {  # what stands in the paths of `asked` as it is
    "rt_1": "REQUEST",
    "ep1": "EPISODE",
    "the-viewer": "TOKEN",
}
_numbers = count(1)


def to_be_asked() -> dict[str, Any]:
    """The document, with an example of each operation: explicit, so that whatever else is drawn it is asked first."""
    told: dict[str, Any] = json.loads(json.dumps(routed().openapi()))
    known = {(write.method, write.path): write.body for write in WRITES} | {("GET", path): None for path in READS}
    for (method, path), body in known.items():
        template, operation = _operation(told, method, path.partition("?")[0])
        given = dict(zip(_parts(template), _parts(path.partition("?")[0]), strict=True))
        asked = dict(one.split("=") for one in path.partition("?")[2].split("&") if one)
        for parameter in operation.get("parameters", ()):
            value = given.get(f"{{{parameter['name']}}}") or asked.get(parameter["name"])
            if value is not None:
                parameter["schema"].pop("examples", None)
                parameter["example"] = int(value) if value.isdecimal() else _NAMED.get(value, value)
        if body is not None:
            operation["requestBody"]["content"]["application/json"]["example"] = body | WHY
    return told


def _operation(told: dict[str, Any], method: str, path: str) -> tuple[str, dict[str, Any]]:
    """The template that a path is of, the one with the fewest parameters first."""
    fitting = [
        template
        for template, operations in told["paths"].items()
        if method.lower() in operations
        and len(_parts(template)) == len(_parts(path))
        and all(a == b or a.startswith("{") for a, b in zip(_parts(template), _parts(path), strict=True))
    ]
    template = min(fitting, key=lambda one: one.count("{"))
    return template, told["paths"][template][method.lower()]


def _parts(path: str) -> list[str]:
    return path.strip("/").split("/")


def ids(registry: Registry) -> dict[str, str]:
    """What the names of ids in the examples stand for now."""
    newest = registry.experiments.all()
    over = next(one.id for one in newest if one.state == "stopped")
    going = min((one for one in newest if one.state != "stopped"), key=lambda one: one.state == "draft", default=None)
    silences, episodes = registry.silences.all(), registry.episodes.all()
    return {
        "KEY": registry.keys.all()[0].id,
        "OVER": over,
        "DRAFT": going.id if going else over,
        "SILENCE": silences[0].id if silences else "none",
        "REQUEST": max(registry.retraining.all(), key=lambda one: (one.created_at, one.id)).id,
        "EPISODE": next((one.id for one in episodes if one.state != "resolved"), "ep1"),
        "TOKEN": "temporary",
    }


def _settled(registry: Registry) -> None:
    """`bot@2` is a canary beside `bot@1`, nothing else goes on, everybody approves, the policies ask for nothing."""
    registry.policies.set("bot", GatePolicy(), by="ada", reason="as it was")
    registry.policies.set("bot", RolloutPolicy(), by="ada", reason="as it was")
    if registry.rollouts.open("bot") is not None:
        steering.abort(registry, "bot", ADA)
    if (running := registry.experiments.running("bot")) is not None:
        registry.experiments.stop(running.id, by="ada", reason="as it was")
    for number in (1, 2, 3):
        registry.gates.approve("bot", number, by="ada", reason="as it was")
    if registry.routes.current("bot").champion != 1:
        promote(registry, "bot", 1, ADA)
    if registry.routes.current("bot").split != {2: 1_000, 1: 9_000}:
        set_route(registry, "bot", {2: 1_000, 1: 9_000}, ADA)


def _rolling(registry: Registry) -> None:
    _settled(registry)
    steering.declare(registry, "bot", 2, RolloutPlan(), ADA)


def _draft(registry: Registry) -> None:
    _settled(registry)
    registry.experiments.new(Declaration.model_validate(DECLARED), NO_PLAN, by="ada", reason="as it was")


def _rolled(then: Callable[[Registry], None]) -> Callable[[Registry], None]:
    """What `asked` does in a registry whose rollout is open and that has one draft."""

    def ready(registry: Registry) -> None:
        _settled(registry)
        revision = registry.routes.current("bot").revision
        for old in registry.experiments.all():
            if old.started_at is None:
                registry.experiments.start(old.id, revision=revision, by="ada", reason="as it was")
                registry.experiments.stop(old.id, by="ada", reason="as it was")
        _draft(registry)
        steering.declare(registry, "bot", 2, RolloutPlan(), ADA)
        then(registry)

    return ready


def _proposed(registry: Registry) -> None:
    registry.policies.set("bot", RetrainingPolicy(), by="ada", reason="as it was")
    for one in registry.retraining.all(open_only=True):
        registry.retraining.cancel(one.id, by="ada", reason="as it was")
    number = next(_numbers)
    registry.retraining.file(
        retraining_request(registry.clock(), id=f"rt_more{number}", idempotency_key=str(number)), by="monitor"
    )


def _failed(registry: Registry) -> None:
    _proposed(registry)
    fail(registry, ids(registry)["REQUEST"])


def _noticed(registry: Registry) -> None:
    now = registry.clock()
    for one in registry.episodes.all(open_only=True):
        over = one.model_copy(update={"state": "resolved", "resolved_at": now})
        registry.episodes.update(one, over, by="monitor", action="episode.resolve")
    registry.episodes.open(alert_episode(now, id=f"ep_more{next(_numbers)}"))


def _kept(registry: Registry) -> None:
    registry.keys.new("team-a", by="test")


def _let_in(registry: Registry) -> None:
    with suppress(Conflict):  # it is there
        registry.tokens.new("temporary", Role.VIEWER, by="ada", reason="as it was")


def _paused(registry: Registry) -> None:
    _rolling(registry)
    pause(registry)


def _not_rolling(registry: Registry) -> None:
    steering.abort(registry, "bot", ADA)
    set_route(registry, "bot", {2: 1_000, 1: 9_000}, ADA)


def _offered(registry: Registry) -> None:
    """Once: what is offered can be registered again and again."""
    if not (registry.settings.home / "whole1").exists():
        offer(registry)


READY: dict[str, Callable[[Registry], object]] = {
    "set_split": _settled,
    "override_keys": _settled,
    "set_holdout": _settled,
    "set_shadow": _settled,
    "promote_version": _settled,
    "roll_back": _settled,
    "judge_version": _settled,
    "approve_version": _settled,
    "start_rollout": _settled,
    "resume_rollout": _paused,
    "abort_rollout": _rolling,
    "declare_experiment": _settled,
    "start_experiment": _rolled(_not_rolling),
    "step_experiment": _rolled(let_learn),
    "stop_experiment": _rolled(begin),
    "register_version": _offered,
    "approve_retraining": _proposed,
    "reject_retraining": _proposed,
    "cancel_retraining": _proposed,
    "retry_retraining": _failed,
    "acknowledge_alert": _noticed,
    "resolve_alert": _noticed,
    "end_silence": lambda registry: registry.silences.add("bot", 86_400, by="ada", reason="r", signal="latency"),
    "limit_key": _kept,
    "rotate_key": _kept,
    "revoke_key": _kept,
    "revoke_token": _let_in,
}
