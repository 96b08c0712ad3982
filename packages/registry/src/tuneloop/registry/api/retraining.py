"""Retraining requests and the policy that lets the monitor file them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from tuneloop.registry import actions, overview
from tuneloop.registry.access.roles import Permission
from tuneloop.registry.api.answers import PageOf, RetrainingHistory
from tuneloop.registry.api.fields import Asked, Body, Here, ModelPath, ModelQuery, RetrainingPath, needs
from tuneloop.registry.nouns import RetrainingRequest
from tuneloop.registry.overview import RequestHistory
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.history import RequestTook, history_of, outcomes_of

router = APIRouter(tags=["retraining"])
READ = needs(Permission.READ)


class Decision(Body):
    """Why a request may run, or may not."""


class RetrainingPolicyChange(Body):
    """The retraining policy that is to be in force; keys left out take their defaults."""

    policy: RetrainingPolicy


@router.get("/retraining", dependencies=READ)
def list_retraining(
    here: Here,
    ask: Asked,
    model: ModelQuery = None,
    open_only: Annotated[bool, Query(description="Only what has not ended.")] = False,
) -> PageOf[RetrainingRequest]:
    """Retraining requests, the newest first."""
    found = here.registry.retraining.page(ask, model, open_only=open_only)
    if model is not None and not found.items and ask.cursor is None:
        here.registry.check_model(model)
    return PageOf[RetrainingRequest].of(found)


@router.get("/retraining-history", dependencies=READ)
def get_retraining_history(here: Here, ask: Asked, model: ModelQuery = None) -> RetrainingHistory:
    """What became of requests, what they took and cost, and the share that shipped of all."""
    queue = here.registry.retraining
    found = queue.page(ask, model)
    if model is not None and not found.items and ask.cursor is None:
        here.registry.check_model(model)
    runs = queue.runs(requests=[request.id for request in found.items])
    took = history_of(found.items, runs, here.registry.clock()).requests
    return RetrainingHistory(
        items=tuple(RequestTook.of(one) for one in took),
        next=found.next,
        unreadable=(*found.unreadable, *runs.unreadable),
        **dict(outcomes_of(queue.counts(model))),
    )


@router.get("/retraining/{request_id}", dependencies=READ)
def get_retraining(request_id: RetrainingPath, here: Here) -> RequestHistory:
    """One request and what happened to it, the oldest first."""
    return overview.request_history(here.registry, request_id)


@router.post("/retraining/{request_id}/approve", dependencies=needs(Permission.APPROVE))
def approve_retraining(request_id: RetrainingPath, body: Decision, here: Here) -> RetrainingRequest:
    """Let a proposed request run."""
    return here.registry.retraining.approve(request_id, by=here.actor, reason=body.reason)


@router.post("/retraining/{request_id}/reject", dependencies=needs(Permission.APPROVE))
def reject_retraining(request_id: RetrainingPath, body: Decision, here: Here) -> RetrainingRequest:
    """Say no to a request that waits to be decided; the monitor asks no more for its episode."""
    return here.registry.retraining.reject(request_id, by=here.actor, reason=body.reason)


@router.post("/retraining/{request_id}/retry", dependencies=needs(Permission.APPROVE))
def retry_retraining(request_id: RetrainingPath, body: Decision, here: Here) -> RetrainingRequest:
    """Give a failed request all its attempts again."""
    return here.registry.retraining.retry(request_id, by=here.actor, reason=body.reason)


@router.post("/retraining/{request_id}/cancel", dependencies=needs(Permission.CANCEL))
def cancel_retraining(request_id: RetrainingPath, body: Decision, here: Here) -> RetrainingRequest:
    """Stop a request that has not ended."""
    return here.registry.retraining.cancel(request_id, by=here.actor, reason=body.reason)


@router.get("/models/{model}/retraining-policy", dependencies=READ)
def get_retraining_policy(model: ModelPath, here: Here) -> RetrainingPolicy:
    """When the monitor may ask for a retraining of a model."""
    here.registry.check_model(model)
    return here.registry.policies.get(model, RetrainingPolicy)


@router.put("/models/{model}/retraining-policy", dependencies=needs(Permission.POLICY))
def set_retraining_policy(model: ModelPath, body: RetrainingPolicyChange, here: Here) -> RetrainingPolicy:
    """Replace a model's retraining policy; each revision is on record."""
    here.registry.check_model(model)
    actions.check_recipe(here.registry, body.policy, "policy")
    here.registry.policies.set(model, body.policy, by=here.actor, reason=body.reason)
    return body.policy
