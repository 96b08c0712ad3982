"""The policies of one kind that are in force, of every model that was ever given one: each one's newest revision."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tuneloop.registry.database import Database
from tuneloop.registry.tables import policies


def newest_of(database: Database, kind: str) -> list[tuple[str, Any]]:
    """Model and newest body, unread, of a kind of policy.

    Raises:
        Unavailable: the database does not answer.
    """
    newest = sa.select(sa.func.max(policies.c.id)).where(policies.c.kind == kind).group_by(policies.c.model)
    query = sa.select(policies.c.model, policies.c.body).where(policies.c.id.in_(newest))
    with database.reading() as connection:
        return [(model, body) for model, body in connection.execute(query)]
