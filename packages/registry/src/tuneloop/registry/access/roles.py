"""Who may do what through the control plane: roles, each a set of permissions, written once.

Duties are kept apart: whoever approves a version does not also give it traffic, and whoever gives traffic approves
nothing, so that no single token brings a version to the public. Only `admin` holds everything.
"""

from __future__ import annotations

from enum import StrEnum

ACTOR_PREFIX = "token:"  # what the audit log puts before the name of a token


class Permission(StrEnum):
    """One thing that may be allowed; every operation of the control plane asks for exactly one."""

    READ = "read"
    ROUTE = "route"
    CANCEL = "cancel"
    APPROVE = "approve"
    REGISTER = "register"
    SIGN = "sign"
    FORCE = "force"
    ALERTS = "alerts"
    POLICY = "policy"
    KEYS = "keys"
    TOKENS = "tokens"
    FORGET = "forget"


MEANINGS: dict[Permission, str] = {
    Permission.READ: "read everything but the tokens",
    Permission.ROUTE: "set routes, overrides, holdouts and shadows, promote, roll back, start, resume and abort "
    "rollouts, declare, start, step and stop experiments",
    Permission.CANCEL: "cancel a retraining request",
    Permission.APPROVE: "approve and revoke versions, have them judged again, approve, reject and retry retraining "
    "requests",
    Permission.REGISTER: "register versions from what MLflow holds",
    Permission.SIGN: "sign versions anew, so that engines load them",
    Permission.FORCE: "serve what nobody approved (`force`)",
    Permission.ALERTS: "acknowledge, resolve and silence alert episodes",
    Permission.POLICY: "set the gate, retraining, rollout, guard and retention policies",
    Permission.KEYS: "make, limit, rotate and revoke API keys of the gateway",
    Permission.TOKENS: "list, make and revoke tokens of the control plane",
    Permission.FORGET: "delete what is on record of a user",
}


class Role(StrEnum):
    """What a token is for."""

    VIEWER = "viewer"
    PROMOTER = "promoter"
    APPROVER = "approver"
    ADMIN = "admin"


_DAILY = frozenset({Permission.READ, Permission.CANCEL, Permission.ALERTS})
ROLES: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({Permission.READ}),
    Role.PROMOTER: _DAILY | {Permission.ROUTE, Permission.REGISTER},
    Role.APPROVER: _DAILY | {Permission.APPROVE, Permission.SIGN},
    Role.ADMIN: frozenset(Permission),
}


def holders(permission: Permission) -> tuple[Role, ...]:
    """The roles that hold a permission."""
    return tuple(role for role in Role if permission in ROLES[role])
