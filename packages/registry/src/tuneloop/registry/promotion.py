"""Changing who serves: the checks a route change must pass, then one atomic write, then the wait for every gateway.

A version gets a share only after some live engine can serve it, so it is staged first: written into the route with weight 0,
which is what makes engines load it. The former champion stays in the route at weight 0, so a rollback loads nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from tuneloop.registry.errors import InvalidInput, NotFound, Refused, TuneloopError
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Arm, RetrainingState, Route, Version, version_name

APPLY_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 120.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """Who changes a route and why."""

    by: str
    reason: str
    force: bool = False  # serve what nobody approved; kept on record


def set_route(
    registry: Registry,
    model: str,
    split: Mapping[int, int],
    change: Change,
    *,
    expected_revision: int | None = None,
    action: str = "route.set",
) -> Route:
    """Write a split (version → basis points) as the next revision and wait until every live gateway applies it.

    `expected_revision` is the revision the caller saw; None takes the newest.

    Raises:
        NotFound: a version does not exist.
        InvalidInput: the weights do not sum to 10,000.
        Refused: a version with a share was not approved (and not forced), or cannot fit on the engines.
        Conflict: another writer was first.
        Unavailable: no engine serves a version in time, or a gateway did not apply the revision in time.
    """
    before = _current(registry, model)
    if expected_revision is None:
        expected_revision = before.revision if before else 0
    arms = arrange(before, split)
    versions = [registry.versions.get(model, arm.version) for arm in arms]
    _check_approved(registry, model, arms, change)
    _check_fits(registry, model, versions)
    if before is not None:
        expected_revision = _stage(registry, before, arms, change, expected_revision)
    route = registry.routes.write(
        model,
        arms,
        by=change.by,
        reason=change.reason,
        expected_revision=expected_revision,
        forced=change.force,
        action=action,
    )
    _mirror(registry, route)
    registry.fleet.wait_applied(model, route.revision, APPLY_TIMEOUT_S)
    return route


def promote(registry: Registry, model: str, version: int, change: Change) -> Route:
    """Give a version everything; the former champion stays loaded at weight 0. Closes the retraining request it answers."""
    before = _current(registry, model)
    split = {version: FULL_SHARE_BP}
    if before is not None and before.champion != version:
        split[before.champion] = 0
    elif before is not None:  # a challenger is dropped, the version kept for rollback stays
        split |= {arm.version: 0 for arm in before.arms[:-1] if arm.weight_bp == 0}
    route = set_route(registry, model, split, change, action="version.promote")
    request_id = registry.versions.get(model, version).request_id
    if request_id is not None:
        request = registry.retraining.get(request_id)
        if request.state is RetrainingState.GATED:
            registry.retraining.finish(
                request,
                RetrainingState.SHIPPED,
                by=change.by,
                outcome=f"{version_name(model, version)} serves everything",
            )
    return route


def rollback(registry: Registry, model: str, change: Change, *, to_revision: int | None = None) -> Route:
    """Take the last change of who serves back: a canary loses its share, or the former champion returns. Loads nothing.

    Raises:
        NotFound: there is no such revision.
        Refused: there is nothing to go back to.
    """
    now = registry.routes.current(model)
    if to_revision is not None:
        target = next((route for route in registry.routes.history(model) if route.revision == to_revision), None)
        if target is None:
            raise NotFound(f"{model} has no revision {to_revision}; `tuneloop route history {model}` shows them")
        return set_route(registry, model, target.split, change, expected_revision=now.revision, action="route.rollback")
    if any(arm.weight_bp > 0 for arm in now.arms[:-1]):
        split = {arm.version: 0 for arm in now.arms[:-1]} | {now.champion: FULL_SHARE_BP}
    else:
        former = next(
            (route.champion for route in registry.routes.history(model) if route.champion != now.champion), None
        )
        if former is None:
            raise Refused(
                f"{model} has only ever been served by {version_name(model, now.champion)}; nothing to go back to"
            )
        split = {now.champion: 0, former: FULL_SHARE_BP}
    return set_route(registry, model, split, change, expected_revision=now.revision, action="route.rollback")


def arrange(before: Route | None, split: Mapping[int, int]) -> tuple[Arm, ...]:
    """The arms in order: challengers as they stood, new ones after them, the champion last.

    The champion stays while it has a share, so raising a canary never moves a key back; without one the heaviest follows.

    Raises:
        InvalidInput: a weight is out of range, or there are no arms.
    """
    if not split:
        raise InvalidInput("a route needs at least one VERSION=WEIGHT")
    for version, weight_bp in split.items():
        if not 0 <= weight_bp <= FULL_SHARE_BP:
            raise InvalidInput(
                f"weight {weight_bp} of version {version} is not between 0 and {FULL_SHARE_BP} basis points"
            )
    if total := sum(split.values()) - FULL_SHARE_BP:
        raise InvalidInput(
            f"weights sum to {total + FULL_SHARE_BP}, not {FULL_SHARE_BP} basis points; add {-total} to one version"
        )
    standing = [arm.version for arm in before.arms] if before else []
    champion = (
        before.champion if before and split.get(before.champion, 0) > 0 else max(split, key=lambda v: (split[v], v))
    )
    order = [v for v in standing if v in split and v != champion] + [
        v for v in split if v not in standing and v != champion
    ]
    return tuple(Arm(version=v, weight_bp=split[v]) for v in (*order, champion))


def _current(registry: Registry, model: str) -> Route | None:
    found = registry.routes.history(model, limit=1)
    return found[0] if found else None


def _check_approved(registry: Registry, model: str, arms: tuple[Arm, ...], change: Change) -> None:
    for arm in arms:
        if arm.weight_bp > 0 and not change.force and registry.gates.approver(model, arm.version) is None:
            name = version_name(model, arm.version)
            report = registry.gates.latest(model, arm.version)
            verdict = f"its gate says {report.verdict}" if report else "no gate has judged it"
            raise Refused(
                f"{name} is not approved ({verdict}); `tuneloop approve {name} --by YOU --reason WHY`, or --force with a reason, on record"
            )


def _check_fits(registry: Registry, model: str, versions: list[Version]) -> None:
    """One engine must hold every adapter the routes of its base name, with one slot to spare (see the engine's launch guards)."""
    for engine in registry.fleet.engines():
        mine = [v for v in versions if v.kind == "adapter" and v.base_digest == engine.base_digest]
        for version in mine:
            if version.rank is not None and version.rank > engine.max_lora_rank:
                raise Refused(
                    f"{version.name} has rank {version.rank}, engine {engine.id} serves up to {engine.max_lora_rank}; "
                    f"start it with --max-lora-rank {version.rank}"
                )
        others = [
            v
            for route in registry.routes.current_all().values()
            if route.model != model
            for v in (registry.versions.get(route.model, arm.version) for arm in route.arms)
            if v.kind == "adapter" and v.base_digest == engine.base_digest
        ]
        if mine and len(mine) + len(others) > engine.max_loras - 1:
            raise Refused(
                f"engine {engine.id} holds {engine.max_loras - 1} adapters, the routes would name {len(mine) + len(others)}; "
                f"take a version out of a route or start it with --max-loras {len(mine) + len(others) + 1}"
            )


def _stage(registry: Registry, before: Route, arms: tuple[Arm, ...], change: Change, expected_revision: int) -> int:
    """Have every arm that gets a share loaded before it gets it; the revision the next write must find as the newest."""
    if not registry.fleet.engines():  # nothing serves anyway: the route says what the first engine will load
        return expected_revision
    names = {arm.version: version_name(before.model, arm.version) for arm in arms if arm.weight_bp > 0}
    missing = [version for version, name in names.items() if not registry.fleet.serving(name)]
    unknown = [version for version in missing if version not in before.split]
    if unknown:
        # Behind the standing challengers, so that nobody's bucket moves.
        staged = (*before.arms[:-1], *(Arm(version=v, weight_bp=0) for v in unknown), before.arms[-1])
        expected_revision = registry.routes.write(
            before.model,
            staged,
            by=change.by,
            reason=f"stage for: {change.reason}",
            expected_revision=expected_revision,
            action="route.stage",
        ).revision
    for version in missing:
        registry.fleet.wait_serving(names[version], LOAD_TIMEOUT_S)
    return expected_revision


def _mirror(registry: Registry, route: Route) -> None:
    try:
        registry.versions.mirror(route)
    except TuneloopError as error:  # the route decides; MLflow's aliases only follow
        _log.warning("MLflow's aliases of %s do not follow revision %d yet: %s", route.model, route.revision, error)
