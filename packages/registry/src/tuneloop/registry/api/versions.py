"""Models, versions, how they were judged, and what people decided about them."""

from __future__ import annotations

import threading

from fastapi import APIRouter

from tuneloop.registry import actions, overview
from tuneloop.registry.access.roles import Permission
from tuneloop.registry.api.answers import Comparison, PageOf, Revocation
from tuneloop.registry.api.fields import (
    Asked,
    Body,
    Days,
    Here,
    ModelPath,
    VersionPath,
    VersionQuery,
    needs,
)
from tuneloop.registry.api.routing import one_of_few
from tuneloop.registry.gates.declared import judge_again
from tuneloop.registry.nouns import Approval, Version
from tuneloop.registry.overview import Judged, ModelLine
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.versions.lineage import Card, ComparedVersion, Lineage, card_of, lineage_of, run_kept

router = APIRouter()
READ = needs(Permission.READ)
_judging = threading.BoundedSemaphore(2)  # each reads files of MLflow, and thousands of records


class Grant(Body):
    """An approval to be given."""

    days: Days | None = None


class Revoke(Body):
    """An approval to be taken back."""


class Judging(Body):
    """Why a version is judged again."""


class GatePolicyChange(Body):
    """The gate policy that is to be in force; keys left out take their defaults."""

    policy: GatePolicy


@router.get("/models", tags=["versions"], dependencies=READ)
def list_models(here: Here, ask: Asked) -> PageOf[ModelLine]:
    """Every registered model by name, its newest version and its split."""
    return PageOf[ModelLine].of(overview.models_page(here.registry, ask))


@router.get("/models/{model}/versions", tags=["versions"], dependencies=READ)
def list_versions(model: ModelPath, here: Here, ask: Asked) -> PageOf[Version]:
    """A model's versions with their lineage and metrics, the newest first."""
    return PageOf[Version].of(overview.versions_page(here.registry, model, ask))


@router.get("/models/{model}/versions/{version}", tags=["versions"], dependencies=READ)
def get_version(model: ModelPath, version: VersionPath, here: Here) -> Version:
    """One version with its lineage and metrics."""
    return overview.version(here.registry, model, version)


@router.get("/models/{model}/versions/{version}/lineage", tags=["versions"], dependencies=READ)
def show_version(model: ModelPath, version: VersionPath, here: Here) -> Lineage:
    """What a version was made of, by whom, what it reached, who let it in and where it serves."""
    return lineage_of(here.registry, model, version)


@router.get("/models/{model}/versions/{version}/card", tags=["versions"], dependencies=READ)
def get_card(model: ModelPath, version: VersionPath, here: Here) -> Card:
    """The model card that was published with a version, and what was found of bias since."""
    return card_of(here.registry, model, version)


@router.get("/models/{model}/compare", tags=["versions"], dependencies=READ)
def compare_versions(model: ModelPath, before: VersionQuery, after: VersionQuery, here: Here) -> Comparison:
    """Two versions side by side: what they were made of, figures with their intervals, and bias."""
    pair = [ComparedVersion.of(run_kept(here.registry, model, number)) for number in (before, after)]
    return Comparison(before=pair[0], after=pair[1])


@router.get("/models/{model}/versions/{version}/gate", tags=["gates"], dependencies=READ)
def get_gate(model: ModelPath, version: VersionPath, here: Here) -> Judged:
    """The newest gate report of a version, and whether it may get a share."""
    return overview.judged(here.registry, model, version)


@router.post("/models/{model}/versions/{version}/gate", tags=["gates"], dependencies=needs(Permission.APPROVE))
def judge_version(model: ModelPath, version: VersionPath, body: Judging, here: Here) -> Judged:
    """Judge a version again, by what its gate asks for now and against the present champion, as kept figures say."""
    with one_of_few(_judging):
        found = overview.version(here.registry, model, version)
        judge_again(here.registry, found, by=here.actor, reason=body.reason)
        return overview.judged(here.registry, model, version)


@router.get("/models/{model}/gate-policy", tags=["gates"], dependencies=READ)
def get_gate_policy(model: ModelPath, here: Here) -> GatePolicy:
    """What a model's versions must show to be let in."""
    here.registry.check_model(model)
    return here.registry.policies.get(model, GatePolicy)


@router.put("/models/{model}/gate-policy", tags=["gates"], dependencies=needs(Permission.POLICY))
def set_gate_policy(model: ModelPath, body: GatePolicyChange, here: Here) -> GatePolicy:
    """Replace a model's gate policy; each revision is on record."""
    here.registry.check_model(model)
    here.registry.policies.set(model, body.policy, by=here.actor, reason=body.reason)
    return body.policy


@router.get("/models/{model}/versions/{version}/approvals", tags=["approvals"], dependencies=READ)
def list_approvals(model: ModelPath, version: VersionPath, here: Here, ask: Asked) -> PageOf[Approval]:
    """What people decided about a version, the newest first."""
    found = here.registry.gates.page(model, version, ask)
    if not found.items and ask.cursor is None:
        overview.version(here.registry, model, version)  # raises with the versions that exist
    return PageOf[Approval].of(found)


@router.post(
    "/models/{model}/versions/{version}/approvals",
    tags=["approvals"],
    status_code=201,
    dependencies=needs(Permission.APPROVE),
)
def approve_version(model: ModelPath, version: VersionPath, body: Grant, here: Here) -> Approval:
    """Answer for a version, so that it may serve; for `days` days or for good."""
    return actions.approve(
        here.registry,
        model,
        version,
        by=here.actor,
        reason=body.reason,
        days=body.days,
        role=here.token.role,
    )


@router.post("/models/{model}/versions/{version}/revoke", tags=["approvals"], dependencies=needs(Permission.APPROVE))
def revoke_version(model: ModelPath, version: VersionPath, body: Revoke, here: Here) -> Revocation:
    """Let a version get no new share, whatever its gate says, until somebody approves it again."""
    done = actions.revoke(here.registry, model, version, by=here.actor, reason=body.reason, role=here.token.role)
    lookup = () if done.not_looked_up is None else (f"not looked up: {done.not_looked_up}",)
    return Revocation(approval=done.approval, notes=(*lookup, *done.notes))
