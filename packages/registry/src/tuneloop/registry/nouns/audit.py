"""Entries of the audit log."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime

from tuneloop.registry.nouns.base import Noun


class AuditEntry(Noun):
    """Who did what to what, when and why."""

    id: int
    at: AwareDatetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    hash: str  # over this entry and the hash of the one before it
