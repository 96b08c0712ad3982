"""Routes, the rollouts and experiments on them, and what MLflow's aliases were last accounted to hold."""

from __future__ import annotations

import sqlalchemy as sa

from tuneloop.registry.tables.columns import (
    Json,
    id_column,
    integer_column,
    json_column,
    metadata,
    text_column,
    time_column,
)

routes = sa.Table(
    "routes",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    json_column("arms"),
    text_column("salt"),
    text_column("by"),
    text_column("reason"),
    time_column("at"),
    sa.Column("forced", sa.Boolean, nullable=False),
    json_column("overrides"),
    integer_column("holdout_bp"),
    sa.Column("shadow", Json, nullable=True),
)
rollouts = sa.Table(
    "rollouts",
    metadata,
    id_column(),
    text_column("model", index=True),
    integer_column("version"),
    integer_column("champion"),
    json_column("plan"),
    text_column("state", index=True),
    integer_column("step", nullable=True),
    time_column("since"),
    integer_column("revision"),
    json_column("taken"),
    json_column("checks"),
    text_column("by"),
    text_column("reason"),
    time_column("created_at"),
    time_column("updated_at"),
    text_column("outcome"),
    text_column("lease_owner", nullable=True),
    time_column("lease_until", nullable=True),
    integer_column("fencing_token"),
    sa.Index("rollouts_by_time", "created_at", "id"),
)
# One open rollout of a model, whoever declares: the database itself refuses the second.
_OPEN_ROLLOUT = rollouts.c.state.in_(("running", "paused"))
sa.Index("rollouts_one_open", rollouts.c.model, unique=True, sqlite_where=_OPEN_ROLLOUT, postgresql_where=_OPEN_ROLLOUT)
aliases = sa.Table(  # one row a model: what MLflow's aliases were last accounted to hold
    "aliases",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    integer_column("champion", nullable=True),
    integer_column("challenger", nullable=True),
    integer_column("revision"),
    text_column("pending"),
    integer_column("token"),
    time_column("at"),
)
experiments = sa.Table(
    "experiments",
    metadata,
    id_column(),
    text_column("model", index=True),
    json_column("declaration"),
    json_column("plan"),
    text_column("state"),
    text_column("by"),
    text_column("reason"),
    time_column("created_at"),
    time_column("started_at", nullable=True),
    integer_column("first_revision", nullable=True),
    time_column("stopped_at", nullable=True),
    time_column("looked_at", nullable=True),
)
# One of a model runs at a time: the database itself refuses the second.
sa.Index(
    "experiments_one_running",
    experiments.c.model,
    unique=True,
    sqlite_where=experiments.c.state == "running",
    postgresql_where=experiments.c.state == "running",
)
