"""Changing who serves: the checks a route change must pass, then one atomic write, then the wait for every gateway.

A version gets a share only after some live engine can serve it (`staging`). The former champion stays in the route at
weight 0, so a rollback to it loads nothing, and needs neither MLflow nor a free slot. MLflow is asked within a few
seconds or not at all: its own client tries for minutes, and nobody who takes a version back waits for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from tuneloop.registry.database import write_last
from tuneloop.registry.errors import InvalidInput, TuneloopError
from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import FULL_SHARE_BP, Arm, RetrainingState, Route, Shadow, version_name
from tuneloop.registry.routes.arranging import arrange
from tuneloop.registry.routes.assignment import key_hash
from tuneloop.registry.routes.staging import (
    check_approved,
    check_fits,
    check_kept,
    stage,
    warn_if_nothing_serves,
)
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within

APPLY_TIMEOUT_S = 5.0
MIRROR_TIMEOUT_S = 5.0  # nobody waits for MLflow's aliases longer than for the gateways
Follow = Callable[[Connection, Route], None]  # what else is written in the transaction of a route's revision
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
    noted: Mapping[str, Any] | None = None,
    follow: Follow | None = None,
) -> Route:
    """Write a split (version → basis points) as the next revision and wait until every live gateway applies it.

    `expected_revision` is the revision the caller saw; None takes the newest. `noted` joins the audit
    record's detail; `follow` writes what belongs to the change in its transaction.

    Raises:
        NotFound: a version does not exist.
        InvalidInput: the weights do not sum to 10,000.
        Refused: a version with a share was not approved (and not forced), or cannot fit on the engines.
        Conflict: another writer was first.
        Unavailable: no engine serves a version in time (the route is as it was), or a gateway did not apply the
            revision in time (the route is changed).
    """
    before = as_seen(registry, model, expected_revision)
    return put(registry, model, before, arrange(before, split), change, action=action, noted=noted, follow=follow)


def promote(
    registry: Registry,
    model: str,
    version: int,
    change: Change,
    *,
    expected_revision: int | None = None,
    noted: Mapping[str, Any] | None = None,
    follow: Follow | None = None,
) -> Route:
    """Give a version everything; the former champion stays loaded at weight 0. Closes the request it answers.

    What has everything already stays as it stands, and no revision is written.

    Raises:
        Like `set_route`.
    """
    before = as_seen(registry, model, expected_revision)
    split = {version: FULL_SHARE_BP}
    if before is not None and before.champion != version:
        split[before.champion] = 0
    elif before is not None:  # a challenger is dropped, the version kept for rollback stays
        split |= {arm.version: 0 for arm in before.arms[:-1] if arm.weight_bp == 0}
        if arrange(before, split) == before.arms and follow is None:
            return before
    return put(
        registry, model, before, arrange(before, split), change, action="version.promote", noted=noted, follow=follow
    )


def override(
    registry: Registry,
    model: str,
    keys: Mapping[str, int | None],
    change: Change,
    *,
    expected_revision: int | None = None,
) -> Route:
    """Give single sticky keys, testers for example, a version of their own; None gives a key back to the split.

    Any arm of the route may be given, also one without a share that nobody has approved yet: who is named is no public.
    The split, and everybody else, stays as it is.

    Raises:
        NotFound: there is no route.
        InvalidInput: a key is empty, or a version is no arm of the route.
        Conflict: another writer was first.
        Unavailable: a gateway did not apply the revision in time (the route is changed).
    """
    registry.route(model)  # raises what to do when there is none
    now = as_seen(registry, model, expected_revision)
    assert now is not None
    wanted = dict(now.overrides)
    for key, version in keys.items():
        if not key.strip():
            raise InvalidInput("an empty key is nobody's; give the sticky key that the tester's requests carry")
        if version is None:
            wanted.pop(key_hash(key), None)
        elif version in now.split:
            wanted[key_hash(key)] = version
        else:
            raise InvalidInput(
                f"{version_name(model, version)} is not in the route of {model} ({now.split_text}); stage it without a "
                f"share first: `tuneloop route set {model} {now.split_text} {version}=0 --by YOU --reason WHY`"
            )
    route = registry.routes.write(
        model,
        now.arms,
        by=change.by,
        reason=change.reason,
        expected_revision=now.revision,
        action="route.override",
        noted={"overrides": {key_hash(key): version for key, version in keys.items()}},
        overrides=wanted,
    )
    registry.fleet.wait_applied(model, route.revision, APPLY_TIMEOUT_S)
    return route


def hold_out(
    registry: Registry, model: str, share_bp: int, change: Change, *, expected_revision: int | None = None
) -> Route:
    """Keep a share of the keys with the champion, whatever the split says; 0 gives them back to it.

    A smaller share frees keys and holds no other; keys with a version of their own keep it.

    Raises:
        NotFound: there is no route.
        InvalidInput: the share is none.
        Conflict: another writer was first.
        Unavailable: a gateway did not apply the revision in time (the route is changed).
    """
    if not 0 <= share_bp < FULL_SHARE_BP:
        raise InvalidInput(f"a holdout of {share_bp} is not from 0 to {FULL_SHARE_BP - 1} basis points")
    registry.route(model)  # raises what to do when there is none
    now = as_seen(registry, model, expected_revision)
    assert now is not None
    route = registry.routes.write(
        model,
        now.arms,
        by=change.by,
        reason=change.reason,
        expected_revision=now.revision,
        action="route.holdout",
        noted={"holdout_bp": share_bp},
        holdout_bp=share_bp,
    )
    registry.fleet.wait_applied(model, route.revision, APPLY_TIMEOUT_S)
    return route


def as_seen(registry: Registry, model: str, expected_revision: int | None) -> Route | None:
    """The newest revision, which must be the one that whoever changes it saw; None: there is none yet.

    Raises:
        Conflict: another writer was first.
    """
    found = registry.routes.history(model, limit=1).whole()
    newest = found[0] if found else None
    if expected_revision is not None and expected_revision != (newest.revision if newest else 0):
        raise registry.routes.lost_race(model, expected_revision, newest)
    return newest


def put(
    registry: Registry,
    model: str,
    before: Route | None,
    arms: Sequence[Arm],
    change: Change,
    *,
    action: str,
    noted: Mapping[str, Any] | None = None,
    follow: Follow | None = None,
    shadow: tuple[()] | tuple[Shadow] | None = None,
    back: bool = False,
) -> Route:
    """Check, stage and write the arms as the revision after `before`, and wait for the gateways; MLflow's aliases
    follow. `back` takes a change back, for which it is not asked whether MLflow holds still what the route names.

    Raises:
        Like `set_route`.
    """
    standing = before.split if before else {}
    new = [arm.version for arm in arms if arm.version not in standing]
    newcomers = (
        mlflow_within(registry, lambda: [registry.versions.get(model, n) for n in new], LOOKUP_TIMEOUT_S) if new else []
    )
    if before is not None and not back:
        check_kept(registry, before, arms)
    if not change.force:
        check_approved(registry, model, before, arms)
    if newcomers:
        mlflow_within(registry, lambda: check_fits(registry, model, before, arms, newcomers), LOOKUP_TIMEOUT_S)
    warn_if_nothing_serves(registry)
    expected_revision = 0 if before is None else stage(registry, before, arms, by=change.by, reason=change.reason)

    def closing(connection: Connection, written: Route) -> None:
        _close_requests(registry, connection, before, written)
        if follow is not None:
            follow(connection, written)
        if not change.force:  # staging takes its time: somebody may have revoked an approval, or it has ended
            write_last(connection, lambda: check_approved(registry, model, before, arms))

    route = registry.routes.write(
        model,
        arms,
        by=change.by,
        reason=change.reason,
        expected_revision=expected_revision,
        forced=change.force,
        action=action,
        noted=noted,
        shadow=shadow,
        follow=closing,
    )
    try:
        registry.fleet.wait_applied(model, route.revision, APPLY_TIMEOUT_S)
    finally:
        _mirror(registry, route)
    return route


def _close_requests(registry: Registry, connection: Connection, before: Route | None, route: Route) -> None:
    """Whoever gave a version everything, or took its share away, has decided about the retraining that made it."""
    had, now = before.split if before else {}, route.split
    for number in sorted({*had, *now}):
        was_bp, is_bp = had.get(number, 0), now.get(number, 0)
        if is_bp == FULL_SHARE_BP != was_bp:
            state, what = RetrainingState.SHIPPED, "serves everything"
        elif is_bp == 0 < was_bp:
            state, what = RetrainingState.REJECTED, "lost its share"
        else:
            continue
        outcome = f"{version_name(route.model, number)} {what}: {route.reason}"
        registry.retraining.decide(connection, route.model, number, state, by=route.by, outcome=outcome)


def _mirror(registry: Registry, route: Route) -> None:
    try:
        mlflow_within(registry, lambda: registry.versions.mirror(route), MIRROR_TIMEOUT_S)
    except TuneloopError as error:  # the route decides; MLflow's aliases only follow
        _log.warning(
            "revision %d of %s is in force, but MLflow's aliases do not follow it yet (the next change moves them): %s",
            route.revision,
            route.model,
            error,
        )
