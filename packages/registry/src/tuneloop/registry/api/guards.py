"""A model's guard policy: what is looked for in its requests and answers, and what is done about the finds."""

from __future__ import annotations

from fastapi import APIRouter

from tuneloop.registry.access.roles import Permission
from tuneloop.registry.api.fields import Body, Here, ModelPath, needs
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.guard_policy import GuardPolicy, current_guards

router = APIRouter(tags=["guards"])


class GuardPolicyChange(Body):
    """The guard policy that is to be in force; keys left out take their defaults."""

    policy: GuardPolicy


@router.get("/models/{model}/guard-policy", dependencies=needs(Permission.READ))
def get_guard_policy(model: ModelPath, here: Here) -> GuardPolicy | None:
    """What is looked for in a model's requests and answers; null: it was never given a policy, and nothing is."""
    here.registry.check_model(model)
    found = current_guards(here.registry.database)
    if model in found.unreadable:
        raise Unreadable(found.unreadable[model])
    return found.get(model)


@router.put("/models/{model}/guard-policy", dependencies=needs(Permission.POLICY))
def set_guard_policy(model: ModelPath, body: GuardPolicyChange, here: Here) -> GuardPolicy:
    """Replace a model's guard policy; every gateway applies it within 2 s, and each revision is on record."""
    here.registry.check_model(model)
    here.registry.policies.set(model, body.policy, by=here.actor, reason=body.reason)
    return body.policy
