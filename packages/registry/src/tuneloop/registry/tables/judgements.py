"""How versions were judged, what people decided about them, and the policies of models."""

from __future__ import annotations

import sqlalchemy as sa

from tuneloop.registry.tables.columns import integer_column, json_column, metadata, text_column, time_column

gate_reports = sa.Table(
    "gate_reports",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    text_column("model"),
    integer_column("version"),
    integer_column("champion", nullable=True),
    time_column("at"),
    json_column("checks"),
    text_column("verdict"),
    sa.Index("gate_reports_by_version", "model", "version"),
)
approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    text_column("model"),
    integer_column("version"),
    sa.Column("granted", sa.Boolean, nullable=False),
    text_column("by"),
    text_column("reason"),
    time_column("at"),
    time_column("expires_at", nullable=True),
    text_column("role", nullable=True),  # of the token it came from; NULL: from the command line
    text_column("trained_by", nullable=True),
    sa.Index("approvals_by_version", "model", "version"),
)
policies = sa.Table(
    "policies",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    text_column("model"),
    text_column("kind"),
    json_column("body"),
    text_column("by"),
    text_column("reason"),
    time_column("at"),
    sa.Index("policies_by_model", "model", "kind"),
)
