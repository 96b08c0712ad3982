"""Retraining requests and their runs."""

from __future__ import annotations

import sqlalchemy as sa

from tuneloop.registry.tables.columns import Money, id_column, integer_column, metadata, text_column, time_column

retraining = sa.Table(
    "retraining",
    metadata,
    id_column(),
    sa.Column("idempotency_key", sa.String(64), nullable=False, unique=True),
    text_column("model", index=True),
    integer_column("base_version"),
    text_column("episode_id", nullable=True),
    text_column("reason"),
    time_column("window_start"),
    time_column("window_end"),
    integer_column("rows"),
    text_column("recipe"),
    text_column("state", index=True),
    time_column("created_at"),
    time_column("updated_at"),
    text_column("lease_owner", nullable=True),
    time_column("lease_until", nullable=True),
    integer_column("fencing_token"),
    integer_column("attempts"),
    integer_column("result_version", nullable=True),
    text_column("outcome"),
    text_column("held"),
    time_column("held_until", nullable=True),
    text_column("budget_waived_by", nullable=True),
    time_column("judged_until", nullable=True),
    sa.Index("retraining_by_time", "created_at", "id"),
)
retraining_runs = sa.Table(
    "retraining_runs",
    metadata,
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("fencing_token", sa.Integer, primary_key=True, autoincrement=False),
    text_column("model"),
    text_column("worker"),
    time_column("started_at"),
    time_column("ended_at", nullable=True),
    text_column("end"),
    integer_column("devices"),
    sa.Column("planned_hours", sa.Float),
    sa.Column("usd_per_hour", Money()),
    text_column("basis"),
    sa.Index("retraining_runs_by_model", "model", "started_at"),
)
