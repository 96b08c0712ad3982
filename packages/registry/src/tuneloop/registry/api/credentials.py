"""API keys of the gateway and tokens of the control plane: a secret is answered once, when it is made."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.access.owners import OwnerLimits
from tuneloop.registry.access.roles import Permission, Role
from tuneloop.registry.access.tokens import NAME_PATTERN, Token
from tuneloop.registry.access.usage import month_name
from tuneloop.registry.api.answers import KeyAnswer, NewKey, NewToken, PageOf
from tuneloop.registry.api.fields import (
    Asked,
    Body,
    Days,
    Here,
    KeyPath,
    KeyQuery,
    MonthQuery,
    OwnerName,
    TokenPath,
    needs,
)
from tuneloop.registry.nouns import KeyUsage, ModelName
from tuneloop.registry.nouns.access import Scope
from tuneloop.registry.paging import Page

router = APIRouter()


class KeyWanted(Body):
    """An API key to be made."""

    owner: OwnerName = Field(description="Whose key it is.", examples=["team-a"])
    models: tuple[ModelName, ...] = Field((), max_length=100, description="What it may ask; none: every model.")
    may_pin: bool = Field(False, description="It may ask for MODEL@VERSION.")
    scopes: tuple[Scope, ...] = Field((), max_length=10, description="The endpoints it opens; none: every one.")
    days: Days | None = None
    limits: KeyLimits = KeyLimits()


class LimitsWanted(Body):
    """What a key may take from now on."""

    limits: KeyLimits = Field(description="All of its limits: what is not named is lifted.")


class OwnerLimitsWanted(Body):
    """What the keys of an owner may take together from now on."""

    owner: OwnerName = Field(description="Whose keys.", examples=["team-a"])
    limits: KeyLimits = Field(description="All of its limits: what is not named is lifted; an owner has no priority.")


class Rotating(Body):
    """A new secret for a key."""

    grace_days: float = Field(1.0, ge=0, le=90, allow_inf_nan=False, description="The old secret opens for so long.")


class TokenWanted(Body):
    """A token to be made."""

    name: str = Field(pattern=NAME_PATTERN, description="Its own for ever.", examples=["deploy-bot"])
    role: Role
    days: Days | None = None


class Revoking(Body):
    """Why a secret is to open nothing any more."""


@router.get("/keys", tags=["keys"], dependencies=needs(Permission.READ))
def list_keys(here: Here, ask: Asked) -> PageOf[KeyAnswer]:
    """API keys of the gateway, the newest first; never their secrets."""
    found = here.registry.keys.page(ask)
    return PageOf[KeyAnswer].of(Page([KeyAnswer.of(key) for key in found.items], found.next, found.unreadable))


@router.get("/key-usage", tags=["keys"], dependencies=needs(Permission.READ))
def list_usage(here: Here, ask: Asked, month: MonthQuery = None, key: KeyQuery = None) -> PageOf[KeyUsage]:
    """What keys used in a month, by key and model, as far as it is on record."""
    wanted = month or month_name(here.registry.clock())
    return PageOf[KeyUsage].of(here.registry.usage.page(wanted, ask, key))


@router.post("/keys", tags=["keys"], status_code=201, dependencies=needs(Permission.KEYS))
def new_key(body: KeyWanted, here: Here) -> NewKey:
    """Make an API key; gateways know it within 2 s."""
    secret, key = here.registry.keys.new(
        body.owner,
        by=here.actor,
        models=body.models,
        may_pin=body.may_pin,
        scopes=body.scopes,
        ttl_s=_seconds(body.days),
        limits=body.limits,
        reason=body.reason,
    )
    return NewKey(secret=secret, key=KeyAnswer.of(key))


@router.put("/keys/{key_id}/limits", tags=["keys"], dependencies=needs(Permission.KEYS))
def limit_key(key_id: KeyPath, body: LimitsWanted, here: Here) -> KeyAnswer:
    """Set what an API key may take; gateways follow within 2 s."""
    return KeyAnswer.of(here.registry.keys.limit(key_id, lambda _: body.limits, by=here.actor, reason=body.reason))


@router.get("/owner-limits", tags=["keys"], dependencies=needs(Permission.READ))
def list_owner_limits(here: Here, ask: Asked) -> PageOf[OwnerLimits]:
    """What the keys of owners may take together, by the owners' names."""
    return PageOf[OwnerLimits].of(here.registry.owners.page(ask))


@router.put("/owner-limits", tags=["keys"], dependencies=needs(Permission.KEYS))
def limit_owner(body: OwnerLimitsWanted, here: Here) -> OwnerLimits:
    """Set what the keys of an owner may take together; gateways follow within 2 s."""
    return here.registry.owners.limit(body.owner, lambda _: body.limits, by=here.actor, reason=body.reason)


@router.post("/keys/{key_id}/rotate", tags=["keys"], dependencies=needs(Permission.KEYS))
def rotate_key(key_id: KeyPath, body: Rotating, here: Here) -> NewKey:
    """Give an API key a new secret; gateways know it within 2 s, and the old one opens for the time of grace."""
    grace_s = body.grace_days * 86_400
    secret, key = here.registry.keys.rotate(key_id, by=here.actor, grace_s=grace_s, reason=body.reason)
    return NewKey(secret=secret, key=KeyAnswer.of(key))


@router.post("/keys/{key_id}/revoke", tags=["keys"], dependencies=needs(Permission.KEYS))
def revoke_key(key_id: KeyPath, body: Revoking, here: Here) -> KeyAnswer:
    """Make an API key unusable; gateways follow within 2 s."""
    return KeyAnswer.of(here.registry.keys.revoke(key_id, by=here.actor, reason=body.reason))


@router.get("/tokens", tags=["tokens"], dependencies=needs(Permission.TOKENS))
def list_tokens(here: Here, ask: Asked) -> PageOf[Token]:
    """Tokens of the control plane by name; never their secrets."""
    return PageOf[Token].of(here.registry.tokens.page(ask))


@router.post("/tokens", tags=["tokens"], status_code=201, dependencies=needs(Permission.TOKENS))
def new_token(body: TokenWanted, here: Here) -> NewToken:
    """Make a token for a person or a program."""
    secret, token = here.registry.tokens.new(
        body.name, body.role, by=here.actor, reason=body.reason, ttl_s=_seconds(body.days)
    )
    return NewToken(secret=secret, token=token)


@router.post("/tokens/{name}/revoke", tags=["tokens"], dependencies=needs(Permission.TOKENS))
def revoke_token(name: TokenPath, body: Revoking, here: Here) -> Token:
    """Make a token unusable at once; this request's own, too."""
    return here.registry.tokens.revoke(name, by=here.actor, reason=body.reason)


def _seconds(days: float | None) -> float | None:
    return None if days is None else days * 86_400
