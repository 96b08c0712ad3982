"""Bringing a version onto the engines before it gets a share: may it serve, is there room, is it loaded.

What makes engines load a version is its name in the route, so it is staged there with weight 0 first. Nothing here
moves anybody's bucket.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from tuneloop.registry.errors import Conflict, NotFound, Refused, Unavailable
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Arm, EngineState, Route, Version, version_name
from tuneloop.registry.versions.deadline import mlflow_within

LOAD_TIMEOUT_S = 120.0
_LOOK_WITHIN = timedelta(seconds=30)  # after it is written, every engine that beats knows a route
KEPT_TIMEOUT_S = 5.0  # that what is loaded already waits for MLflow to say whether it has it still
_log = logging.getLogger(__name__)


def check_approved(registry: Registry, model: str, before: Route | None, arms: Sequence[Arm]) -> None:
    """Refuse a share, or a larger one, to what nobody approved.

    The champion was let in when it became one: what takes a challenger's traffic back to it must never wait for an
    approval, nor for that of another challenger which keeps what it has.

    Raises:
        Refused: names the version and what its gate says.
    """
    for arm in arms:
        if arm.weight_bp <= _had_bp(before, arm) or (before is not None and arm.version == before.champion):
            continue
        if registry.gates.approver(model, arm.version) is None:
            name = version_name(model, arm.version)
            raise Refused(
                f"{name} is not approved ({registry.gates.why_not(model, arm.version)}); "
                f"`tuneloop approve {name} --by YOU --reason WHY`, or --force with a reason, on record"
            )


def _had_bp(before: Route | None, arm: Arm) -> int:
    return before.split.get(arm.version, 0) if before is not None else 0


def check_kept(registry: Registry, before: Route, arms: Sequence[Arm]) -> None:
    """Refuse more to what was deleted in MLflow: an engine that restarts could not fetch it.

    What the route names is loaded, so that MLflow is away keeps nothing back; nor is anything asked where a
    challenger's share goes back to the champion.

    Raises:
        Refused: names the version.
    """
    more = [arm.version for arm in arms if before.split.get(arm.version, FULL_SHARE_BP) < arm.weight_bp]
    for number in more:
        if number == before.champion:
            continue
        try:
            mlflow_within(registry, partial(registry.versions.get, before.model, number), KEPT_TIMEOUT_S)
        except NotFound as error:
            name = version_name(before.model, number)
            raise Refused(
                f"the route names {name}, and it is gone from MLflow ({error}): an engine that restarts could not load "
                f"it; train or register it again, and take it out with `tuneloop route set {before.model}`"
            ) from None
        except Unavailable as error:
            _log.warning("whether %s is still in MLflow is not known: %s", version_name(before.model, number), error)


def check_fits(
    registry: Registry, model: str, before: Route | None, arms: Sequence[Arm], newcomers: Sequence[Version]
) -> None:
    """Refuse what the live engines cannot hold.

    Each holds every adapter that the routes of its base name, with one slot to spare (see the engine's launch guards).
    While newcomers are loaded, the versions that still have a share are there too. Without newcomers nothing is to be
    loaded.

    Raises:
        Refused: names the version, the engine and how to start it instead.
    """
    for version in newcomers:
        if version.signed_by is None and registry.settings.unsigned_versions == "refuse":
            raise Refused(
                f"{version.name} is not signed, and engines refuse it; once you have looked at it: "
                f"`tuneloop sign {version.name} --by YOU --reason WHY`"
            )
    live = registry.fleet.engines()
    for version in newcomers:
        if version.kind == "full" and live and not any(version.name in engine.adapters for engine in live):
            raise Refused(
                f"{version.name} is whole weights, and no live engine was started for it; start one and try again once "
                f"it is ready: `tuneloop engine --version {version.name}`"
            )
    newcomers = [version for version in newcomers if version.kind == "adapter"]
    engines = [engine for engine in live if engine.max_loras]
    if live and newcomers and not engines:
        raise Refused("every live engine serves its base alone (--max-loras 0); start one that takes adapters")
    if not engines or not newcomers:
        return
    for version in newcomers:
        _check_servable(version, engines, serving=before is not None)
    staying = [arm.version for arm in _staged(before, arms) if arm.version not in {v.version for v in newcomers}]
    mine = [*newcomers, *_there(registry, [(model, number) for number in staying])]
    others = [route for route in registry.routes.current_all().values() if route.model != model]
    arms_there = [(model, number) for number in staying] + [(r.model, arm.version) for r in others for arm in r.arms]
    named = {version_name(*arm) for arm in arms_there}
    asked = _there(registry, _unknown(registry, others, engines))
    for engine in engines:
        here = [v.name for v in mine if _loads(engine, v)]
        there = (named | set(engine.pins)) & engine.adapters.keys()
        count = len({*here, *(v.name for v in asked if _loads(engine, v)), *there})
        if here and count > engine.max_loras - 1:
            raise Refused(
                f"engine {engine.id} holds {engine.max_loras - 1} adapters, the routes{_and_pins(engine)} would name "
                f"{count} (of {model}, on the way there: {', '.join(here)}); take a version out of a route or start it "
                f"with --max-loras {count + 1}"
            )


def _and_pins(engine: EngineState) -> str:
    return f" and its pins ({', '.join(engine.pins)})" if engine.pins else ""


def _unknown(registry: Registry, routes: Sequence[Route], engines: Sequence[EngineState]) -> list[tuple[str, int]]:
    """The arms of these routes of which only MLflow says whether an engine is to hold them.

    An engine's heartbeat names the adapters of its base that routes name. So one that names no arm of a route, and has
    looked since that was written, has another base. Engines that start name nothing yet: then a champion tells.
    """
    held = {name for engine in engines for name in engine.adapters}
    all_ready = all(engine.state == "ready" for engine in engines)
    looked = min(engine.at for engine in engines) - _LOOK_WITHIN if all_ready else None
    wanted: list[tuple[str, int]] = []
    for route in routes:
        names = {version_name(route.model, arm.version): arm.version for arm in route.arms}
        if held.isdisjoint(names):
            if looked is not None and route.at < looked:
                continue
            champion = _there(registry, [(route.model, route.champion)])
            if champion and not any(_loads(engine, champion[0]) for engine in engines):
                continue
        wanted += [(route.model, number) for name, number in names.items() if name not in held]
    return wanted


def _there(registry: Registry, wanted: Sequence[tuple[str, int]]) -> list[Version]:
    """Those of these versions that there are: what is gone from MLflow no engine will load."""
    found: list[Version] = []
    for model, number in wanted:
        try:
            found.append(registry.versions.get(model, number))
        except NotFound as error:
            _log.warning("a route names %s, which is gone from MLflow: %s", version_name(model, number), error)
    return found


def _loads(engine: EngineState, version: Version) -> bool:
    return version.kind == "adapter" and version.base_digest == engine.base_digest


def _check_servable(version: Version, engines: Sequence[EngineState], *, serving: bool) -> None:
    fitting = [engine for engine in engines if engine.base_digest == version.base_digest]
    if serving and not fitting:
        there = ", ".join(f"{engine.id} has {engine.base} {engine.base_digest[:19]}…" for engine in engines)
        raise Refused(
            f"{version.name} was trained on {version.base} {version.base_digest[:19]}…, which no live engine has "
            f"({there}); start an engine with that base"
        )
    for engine in fitting:
        if engine.template_digest != version.template_digest:
            raise Refused(
                f"{version.name} was trained with the chat template {version.template_digest[:19]}…, engine "
                f"{engine.id} has {engine.template_digest[:19]}…; it would be asked in a form it never saw"
            )
        if version.rank is not None and version.rank > engine.max_lora_rank:
            raise Refused(
                f"{version.name} has rank {version.rank}, engine {engine.id} serves up to {engine.max_lora_rank}; "
                f"start it with --max-lora-rank {version.rank}"
            )


def _staged(before: Route | None, arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """The arms while newcomers are loaded: everybody's share as it was, nobody kept who neither serves nor will.

    Newcomers stand behind the standing challengers, so that nobody's bucket moves.
    """
    if before is None:
        return tuple(arms)
    wanted = {arm.version for arm in arms}
    kept = [arm for arm in before.arms[:-1] if arm.weight_bp > 0 or arm.version in wanted]
    new = [Arm(version=arm.version, weight_bp=0) for arm in arms if arm.version not in before.split]
    return (*kept, *new, before.arms[-1])


def warn_if_nothing_serves(registry: Registry) -> None:
    """Say that a route is written without anybody having loaded what it names."""
    if not registry.fleet.engines():
        _log.warning("no engine is live: nothing has shown that what this route names can be loaded")


def stage(registry: Registry, before: Route, arms: Sequence[Arm], *, by: str, reason: str) -> int:
    """Have every arm that gets more loaded before it gets it; the revision the next write must find as the newest.

    What cannot be loaded is taken out of the route again. The champion is not waited for: it serves already, or
    nothing could be done about it here.

    Raises:
        Conflict: another writer was first.
        Unavailable: no engine serves a version in time; the route is as it was.
    """
    if not registry.fleet.engines():  # nothing serves anyway: the route says what the first engine will load
        return before.revision
    sharing = [arm.version for arm in arms if arm.weight_bp > _had_bp(before, arm) and arm.version != before.champion]
    missing = [version for version in sharing if not registry.fleet.serving(version_name(before.model, version))]
    revision = before.revision
    if any(version not in before.split for version in missing):
        revision = registry.routes.write(
            before.model,
            _staged(before, arms),
            by=by,
            reason=f"stage for: {reason}",
            expected_revision=revision,
            action="route.stage",
        ).revision
    try:
        for version in missing:
            registry.fleet.wait_serving(version_name(before.model, version), LOAD_TIMEOUT_S)
    except Unavailable:
        if revision != before.revision:
            _unstage(registry, before, revision, by=by, reason=reason)
        raise
    return revision


def _unstage(registry: Registry, before: Route, revision: int, *, by: str, reason: str) -> None:
    try:
        registry.routes.write(
            before.model,
            before.arms,
            by=by,
            reason=f"could not be loaded: {reason}",
            expected_revision=revision,
            action="route.unstage",
            overrides=before.overrides,
            shadow=(before.shadow,) if before.shadow else (),
        )
    except Conflict as error:  # the route is somebody else's now
        _log.warning("%s stays as it is: %s", before.model, error)
