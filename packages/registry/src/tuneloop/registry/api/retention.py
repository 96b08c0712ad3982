"""How long what models were asked and answered is kept: a policy of a model's own, or that of every other."""

from __future__ import annotations

from fastapi import APIRouter

from tuneloop.registry.access.roles import Permission
from tuneloop.registry.api.fields import Body, Here, ModelPath, needs
from tuneloop.registry.deliveries.receivers import EVERY_MODEL
from tuneloop.registry.retention_policy import RetentionPolicy, current_retention

router = APIRouter(tags=["traffic"])
READ, SET = needs(Permission.READ), needs(Permission.POLICY)


class RetentionPolicyChange(Body):
    """The retention policy that is to be in force; keys left out keep everything."""

    policy: RetentionPolicy


@router.get("/models/{model}/retention-policy", dependencies=READ)
def get_retention_policy(model: ModelPath, here: Here) -> RetentionPolicy:
    """After how many days what a model was asked and answered goes; without a policy of its own, as every other's."""
    here.registry.check_model(model)
    return current_retention(here.registry.database).of(model)


@router.put("/models/{model}/retention-policy", dependencies=SET)
def set_retention_policy(model: ModelPath, body: RetentionPolicyChange, here: Here) -> RetentionPolicy:
    """Replace a model's retention policy; the controller deletes by it, and each revision is on record."""
    here.registry.check_model(model)
    return _set(model, body, here)


@router.get("/retention-policy", dependencies=READ)
def get_retention_policy_of_others(here: Here) -> RetentionPolicy:
    """After how many days what goes that models without a policy of their own were asked and answered."""
    return current_retention(here.registry.database).of(EVERY_MODEL)


@router.put("/retention-policy", dependencies=SET)
def set_retention_policy_of_others(body: RetentionPolicyChange, here: Here) -> RetentionPolicy:
    """Replace the retention policy of every model that has none of its own."""
    return _set(EVERY_MODEL, body, here)


def _set(subject: str, body: RetentionPolicyChange, here: Here) -> RetentionPolicy:
    here.registry.policies.set(subject, body.policy, by=here.actor, reason=body.reason)
    return body.policy
