"""API keys and what they used."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.nouns.base import ModelName, Noun

Scope = Literal["chat", "completions", "responses", "embeddings", "feedback", "models"]


class ApiKey(Noun):
    """Who may ask; the secret itself is shown once and kept only as a SHA-256 digest."""

    id: str
    digest: str
    owner: str
    models: tuple[ModelName, ...]  # empty: every model
    may_pin: bool  # may ask for MODEL@VERSION
    scopes: tuple[Scope, ...] = ()  # the endpoints it opens; empty: every one
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    limits: KeyLimits = KeyLimits()
    old_digest: str | None = None  # of the secret before the last rotation, which opens until `old_until`
    old_until: AwareDatetime | None = None
    owner_limits: KeyLimits | None = None  # that all keys of its owner have together, where gateways read it

    def usable(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def opened_by(self, digest: str, now: datetime) -> bool:
        """Whether the secret of that digest may be used: the key's own, or the one before in its time of grace."""
        known = digest == self.digest or (
            digest == self.old_digest and self.old_until is not None and now < self.old_until
        )
        return known and self.usable(now)


class KeyUsage(Noun):
    """What an API key used of one model in a month, as far as it is on record."""

    month: str  # `2026-11`, of UTC
    api_key: str
    model: str
    requests: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
