"""Routes, promotion, rollback and rollouts.

Every write is compare-and-swap against the newest revision. Whoever gives `expected_revision`, which a new split must,
writes only if nobody changed the route since; otherwise the answer is a conflict that says who did, and what.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from fastapi import APIRouter
from pydantic import Field

from tuneloop.registry import overview
from tuneloop.registry.access.roles import Permission
from tuneloop.registry.api.answers import PageOf
from tuneloop.registry.api.fields import (
    Asked,
    Body,
    Here,
    ModelPath,
    ModelQuery,
    Name,
    Revision,
    RevisionQuery,
    VersionNumber,
    VersionPath,
    WeightBp,
    needs,
)
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Noun, Route
from tuneloop.registry.overview import RolloutNow, RouteNow
from tuneloop.registry.policies import RolloutPolicy
from tuneloop.registry.rollouts import steering
from tuneloop.registry.rollouts.rollout import Rollout, RolloutPlan
from tuneloop.registry.routes.changes import RouteDiff, differences
from tuneloop.registry.routes.promotion import hold_out, override, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.routes.shadowing import ShadowNow, shadow

router = APIRouter()
# A change waits for gateways, and for an engine to load what is new, up to two minutes: so many may, reads go on.
CHANGES = 4
REPORTS = 2  # which read a whole trial's or experiment's records; places of their own: no reader keeps changes out
_changes, _returns = threading.BoundedSemaphore(CHANGES), threading.BoundedSemaphore(CHANGES)
_reports = threading.BoundedSemaphore(REPORTS)
READ = needs(Permission.READ)
ROUTE = needs(Permission.ROUTE)


class Busy(Exception):
    """As many of what takes long is being answered as may be."""


@contextmanager
def one_of_few(places: threading.BoundedSemaphore = _changes) -> Iterator[None]:
    """For what waits, or reads much.

    Raises:
        Busy: as many are at it as may be.
    """
    if not places.acquire(blocking=False):
        raise Busy("as many requests that take long are being answered as may be; ask again when one has ended")
    try:
        yield
    finally:
        places.release()


def _taking_back() -> AbstractContextManager[None]:
    """What takes a share away waits behind no version that an engine has yet to load."""
    return one_of_few(_returns)


def reading_much() -> AbstractContextManager[None]:
    """What only reads, but much, has places of its own."""
    return one_of_few(_reports)


class Share(Noun):
    """One version's share."""

    version: VersionNumber
    weight_bp: WeightBp


class RouteChange(Body):
    """A new split, and the revision it replaces."""

    arms: tuple[Share, ...] = Field(
        min_length=1,
        max_length=100,
        description="Their weights sum to 10,000.",
        examples=[[{"version": 2, "weight_bp": 1_000}, {"version": 1, "weight_bp": 9_000}]],
    )
    expected_revision: Revision = Field(description="The revision you saw; 0: there is no route yet.")
    force: bool = Field(False, description="Serve what nobody approved; on record. Only an admin may.")


class Overrides(Body):
    """Sticky keys that get a version of their own; null gives a key back to the split. Keys are kept as hashes."""

    keys: dict[Name, VersionNumber | None] = Field(min_length=1, max_length=100, examples=[{"tester-7": 2}])
    expected_revision: Revision | None = None


class Holdout(Body):
    """A share of the keys that gets the champion; 0 ends it."""

    holdout_bp: WeightBp
    expected_revision: Revision | None = None


class ShadowChange(Body):
    """The version that is sent copies of what a share of the keys asks; a share of 0 ends it."""

    version: VersionNumber = Field(examples=[3])
    share_bp: WeightBp = Field(examples=[500])
    expected_revision: Revision | None = None


class RolloutPolicyChange(Body):
    """The rollout policy that is to be in force; keys left out take their defaults."""

    policy: RolloutPolicy


class Promotion(Body):
    """A promotion."""

    expected_revision: Revision | None = None
    force: bool = Field(False, description="Serve what nobody approved; on record. Only an admin may.")


class Rollback(Body):
    """A rollback."""

    to_revision: VersionNumber | None = Field(None, description="The revision whose split returns.")
    expected_revision: Revision | None = None
    force: bool = Field(False, description="Serve what nobody approved; on record. Only an admin may.")


class Start(Body):
    """A rollout to be declared; a controller goes on with it."""

    version: VersionNumber
    plan: RolloutPlan | None = Field(None, description="Steps and limits; null: as the model's rollout policy says.")


class Resume(Body):
    """Why a paused rollout may go on."""


class Abort(Body):
    """A rollout's end."""

    expected_revision: Revision | None = None


@router.get("/models/{model}/route", tags=["routes"], dependencies=READ)
def get_route(model: ModelPath, here: Here) -> RouteNow:
    """The route in force, and which gateways apply it."""
    return overview.route_now(here.registry, model)


@router.get("/models/{model}/route/shadow", tags=["routes"], dependencies=READ)
def get_shadow(model: ModelPath, here: Here) -> ShadowNow:
    """The route's shadow beside the live answers to the same requests."""
    with reading_much():
        return overview.shadow_now(here.registry, model)


@router.get("/models/{model}/route/revisions", tags=["routes"], dependencies=READ)
def list_revisions(model: ModelPath, here: Here, ask: Asked) -> PageOf[Route]:
    """Every revision, the newest first."""
    found = here.registry.routes.page(model, ask)
    if not found.items and ask.cursor is None:
        here.registry.route(model)  # raises what to do when there is none
    return PageOf[Route].of(found)


@router.get("/models/{model}/route/diff", tags=["routes"], dependencies=READ)
def diff_revisions(
    model: ModelPath, before: RevisionQuery, here: Here, after: RevisionQuery | None = None
) -> RouteDiff:
    """What differs between two revisions, and how many keys it moves; without `after`, against the route in force."""
    routes = here.registry.routes
    now = here.registry.route(model) if after is None else routes.at(model, after)
    return differences(routes.at(model, before), now)


@router.put("/models/{model}/route", tags=["routes"], dependencies=ROUTE)
def set_split(model: ModelPath, body: RouteChange, here: Here) -> Route:
    """Write a split as the next revision, and wait until every live gateway applies it."""
    split = {share.version: share.weight_bp for share in body.arms}
    if len(split) != len(body.arms):
        raise InvalidInput("arms: a version stands twice in the split")
    change = here.change(body.reason, force=body.force)
    with one_of_few():
        return set_route(here.registry, model, split, change, expected_revision=body.expected_revision)


@router.patch("/models/{model}/route/overrides", tags=["routes"], dependencies=ROUTE)
def override_keys(model: ModelPath, body: Overrides, here: Here) -> Route:
    """Give single sticky keys, testers for example, a version of their own; the others stay as they are."""
    change = here.change(body.reason)
    with one_of_few():
        return override(here.registry, model, body.keys, change, expected_revision=body.expected_revision)


@router.put("/models/{model}/route/holdout", tags=["routes"], dependencies=ROUTE)
def set_holdout(model: ModelPath, body: Holdout, here: Here) -> Route:
    """Keep a share of the keys with the champion, whatever the split says."""
    change = here.change(body.reason)
    with one_of_few():
        return hold_out(here.registry, model, body.holdout_bp, change, expected_revision=body.expected_revision)


@router.put("/models/{model}/route/shadow", tags=["routes"], dependencies=ROUTE)
def set_shadow(model: ModelPath, body: ShadowChange, here: Here) -> Route:
    """Send a version copies of what a share of the keys asks; nobody is given its answers."""
    change, expected = here.change(body.reason), body.expected_revision
    with one_of_few():
        return shadow(here.registry, model, body.version, body.share_bp, change, expected_revision=expected)


@router.post("/models/{model}/versions/{version}/promote", tags=["routes"], dependencies=ROUTE)
def promote_version(model: ModelPath, version: VersionPath, body: Promotion, here: Here) -> Route:
    """Give a version all the traffic; the former champion stays loaded."""
    change = here.change(body.reason, force=body.force)
    with one_of_few():
        return promote(here.registry, model, version, change, expected_revision=body.expected_revision)


@router.post("/models/{model}/rollback", tags=["routes"], dependencies=ROUTE)
def roll_back(model: ModelPath, body: Rollback, here: Here) -> Route:
    """Take the last change of who serves back, or return to the split of a revision."""
    change = here.change(body.reason, force=body.force)
    to, expected = body.to_revision, body.expected_revision
    with _taking_back():
        return rollback(here.registry, model, change, to_revision=to, expected_revision=expected)


@router.get("/models/{model}/rollout", tags=["rollouts"], dependencies=READ)
def get_rollout(model: ModelPath, here: Here) -> RolloutNow:
    """The open rollout, and the running canary judged as it stands now."""
    with reading_much():
        return overview.rollout_now(here.registry, model)


@router.get("/models/{model}/rollout-policy", tags=["rollouts"], dependencies=READ)
def get_rollout_policy(model: ModelPath, here: Here) -> RolloutPolicy:
    """How a model's rollouts go, and what becomes of aliases that are moved in MLflow."""
    here.registry.check_model(model)
    return here.registry.policies.get(model, RolloutPolicy)


@router.put("/models/{model}/rollout-policy", tags=["rollouts"], dependencies=needs(Permission.POLICY))
def set_rollout_policy(model: ModelPath, body: RolloutPolicyChange, here: Here) -> RolloutPolicy:
    """Set how a model's rollouts go."""
    here.registry.check_model(model)
    here.registry.policies.set(model, body.policy, by=here.actor, reason=body.reason)
    return body.policy


@router.get("/rollouts", tags=["rollouts"], dependencies=READ)
def list_rollouts(here: Here, ask: Asked, model: ModelQuery = None) -> PageOf[Rollout]:
    """Rollouts, the newest first."""
    found = here.registry.rollouts.page(ask, model)
    if model is not None and not found.items and ask.cursor is None:
        here.registry.check_model(model)
    return PageOf[Rollout].of(found)


@router.post("/models/{model}/rollout", tags=["rollouts"], dependencies=ROUTE)
def start_rollout(model: ModelPath, body: Start, here: Here) -> Rollout:
    """Declare a rollout; a controller raises the share, judges, and ships it or takes it back."""
    plan = body.plan or here.registry.policies.get(model, RolloutPolicy).plan
    return steering.declare(here.registry, model, body.version, plan, here.change(body.reason))


@router.post("/models/{model}/rollout/resume", tags=["rollouts"], dependencies=ROUTE)
def resume_rollout(model: ModelPath, body: Resume, here: Here) -> Rollout:
    """Let a paused rollout go on from where the route stands now."""
    return steering.resume(here.registry, model, here.change(body.reason))


@router.post("/models/{model}/rollout/abort", tags=["rollouts"], dependencies=ROUTE)
def abort_rollout(model: ModelPath, body: Abort, here: Here) -> Route:
    """End the open rollout and take the canary's share away."""
    with _taking_back():
        change = here.change(body.reason)
        _, route = steering.abort(here.registry, model, change, expected_revision=body.expected_revision)
        return route
