"""Whose limits a request has to keep: those of its key, and those that all keys of its owner have together."""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.access.owners import owner_id
from tuneloop.registry.nouns import ApiKey


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose limits they are."""

    id: str  # a key's, or its owner's
    who: str
    limits: KeyLimits
    is_owner: bool = False


def scopes_of(key: ApiKey) -> list[Scope]:
    """Those that limit a key's requests: it, and all keys of its owner together."""
    found = [] if key.limits.are_none else [Scope(key.id, "this API key", key.limits)]
    if key.owner_limits is not None and not key.owner_limits.are_none:
        who = f"{key.owner[:100]}, with all its API keys,"
        found.append(Scope(owner_id(key.owner), who, key.owner_limits, is_owner=True))
    return found
