"""The audit log and its newest entry."""

from __future__ import annotations

import sqlalchemy as sa

from tuneloop.registry.tables.columns import json_column, metadata, text_column, time_column

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    time_column("at"),
    text_column("actor"),
    text_column("action"),
    text_column("subject", index=True),
    json_column("detail"),
    sa.Column("hash", sa.String(64), nullable=False),
)
audit_head = sa.Table(  # one row: the newest entry of the log
    "audit_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
