"""Who did what, when and why: written in the same transaction as the thing itself, never changed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.database import Database, Rows, readable
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import AuditEntry
from tuneloop.registry.tables import audit


def record(
    connection: Connection, *, at: datetime, actor: str, action: str, subject: str, detail: dict[str, Any]
) -> None:
    """Append one entry inside the caller's transaction.

    Raises:
        InvalidInput: nobody is named.
    """
    if not actor.strip():
        raise InvalidInput(f"{action} of {subject} needs a name of who does it: it is kept for ever")
    connection.execute(sa.insert(audit).values(at=at, actor=actor, action=action, subject=subject, detail=detail))


class Audit:
    """Reading the audit log."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def entries(self, subject: str | None = None, limit: int = 100, *, action: str | None = None) -> Rows[AuditEntry]:
        """The newest entries first, of one subject (a model, version or request name) or all; of one action, or all."""
        query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(audit.c.subject == subject)
        if action is not None:
            query = query.where(audit.c.action == action)
        with self._db.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return readable(AuditEntry, rows)
