"""The tables of the one database, in SQLAlchemy Core; `migrations/` makes them, this module names them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect

metadata = sa.MetaData()


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC in, aware UTC out, on SQLite (which forgets the zone) as on PostgreSQL."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    @property
    def python_type(self) -> type[Any]:
        return datetime

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy's signature)
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy's signature)
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return _as_stored_if_damaged(super().result_processor(dialect, coltype))


class _Json(sa.types.TypeDecorator[Any]):
    """JSON in a column."""

    impl = sa.JSON().with_variant(JSONB(), "postgresql")
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return _as_stored_if_damaged(super().result_processor(dialect, coltype))


class Money(sa.types.TypeDecorator[Decimal]):
    """An exact amount: SQLite has no decimal numbers, so it is written out."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002 (SQLAlchemy's signature)
        try:
            return None if value is None else Decimal(value)
        except InvalidOperation:
            return value  # for its noun to refuse it by the row's name


def _as_stored_if_damaged(process: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """A value that cannot be read comes through as it stands, for its noun to refuse it by the row's name; an error
    here would take every other row of the query with it, and name none."""
    if process is None:
        return None

    def processed(value: Any) -> Any:
        try:
            return process(value)
        except (ValueError, TypeError, RecursionError):
            return value

    return processed


Json = _Json()


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(64), primary_key=True)


def _time(name: str, *, nullable: bool = False, index: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, UtcDateTime(), nullable=nullable, index=index)


def _text(name: str, *, nullable: bool = False, index: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable, index=index)


def _integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=nullable)


def _json(name: str) -> sa.Column[Any]:
    return sa.Column(name, Json, nullable=False)


routes = sa.Table(
    "routes",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    _json("arms"),
    _text("salt"),
    _text("by"),
    _text("reason"),
    _time("at"),
    sa.Column("forced", sa.Boolean, nullable=False),
    _json("overrides"),
    _integer("holdout_bp"),
    sa.Column("shadow", Json, nullable=True),
)
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    _time("at"),
    _text("actor"),
    _text("action"),
    _text("subject", index=True),
    _json("detail"),
    sa.Column("hash", sa.String(64), nullable=False),
)
audit_head = sa.Table(  # one row: the newest entry of the log
    "audit_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
gate_reports = sa.Table(
    "gate_reports",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    _text("model"),
    _integer("version"),
    _integer("champion", nullable=True),
    _time("at"),
    _json("checks"),
    _text("verdict"),
    sa.Index("gate_reports_by_version", "model", "version"),
)
approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    _text("model"),
    _integer("version"),
    sa.Column("granted", sa.Boolean, nullable=False),
    _text("by"),
    _text("reason"),
    _time("at"),
    _time("expires_at", nullable=True),
    _text("role", nullable=True),  # of the token it came from; NULL: from the command line
    _text("trained_by", nullable=True),
    sa.Index("approvals_by_version", "model", "version"),
)


def _request_columns() -> list[sa.Column[Any]]:
    return [
        _id(),
        _time("at"),
        _text("model"),
        _integer("revision", nullable=True),
        _integer("assigned_version", nullable=True),
        _integer("served_version", nullable=True),
        _text("engine", nullable=True),
        _text("key_hash"),
        _text("key_source"),
        _text("api_key", nullable=True),
        _text("endpoint"),
        sa.Column("stream", sa.Boolean, nullable=False),
        _integer("status"),
        _text("error", nullable=True),
        _integer("prompt_tokens", nullable=True),
        _integer("completion_tokens", nullable=True),
        sa.Column("queue_ms", sa.Float),
        sa.Column("ttft_ms", sa.Float),
        sa.Column("total_ms", sa.Float, nullable=False),
        _json("guards"),
        _json("messages"),
        _text("answer", nullable=True),
    ]


requests = sa.Table(
    "requests",
    metadata,
    *_request_columns(),
    sa.Index("requests_by_model_time", "model", "at"),
    sa.Index("requests_by_version_time", "model", "served_version", "at"),
)
# Copies that a shadow answered: apart, so that nothing which reads what users asked can take one for theirs.
shadow_requests = sa.Table(
    "shadow_requests",
    metadata,
    *_request_columns(),
    _text("shadow_of", index=True),
    sa.Index("shadow_requests_by_version_time", "model", "served_version", "at"),
)
feedback = sa.Table(
    "feedback",
    metadata,
    _id(),
    _text("request_id", index=True),
    _time("at", index=True),
    sa.Column("score", sa.Float),
    _text("thumb", nullable=True),
    _text("label", nullable=True),
    _text("comment", nullable=True),
    _text("correction", nullable=True),
    _text("api_key", nullable=True),
)
engines = sa.Table(
    "engines",
    metadata,
    _id(),
    _text("url"),
    _text("base"),
    _text("base_digest"),
    _text("template_digest"),
    _text("state"),
    _json("adapters"),
    _text("detail"),
    _integer("max_loras"),
    _integer("max_lora_rank"),
    _time("at"),
)
gateways = sa.Table(
    "gateways",
    metadata,
    _id(),
    _text("url"),
    _json("applied"),
    _json("in_flight"),
    _integer("dropped_records"),
    _time("at"),
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    _id(),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    _text("owner"),
    _json("models"),
    sa.Column("may_pin", sa.Boolean, nullable=False),
    _time("created_at"),
    _time("expires_at", nullable=True),
    _time("revoked_at", nullable=True),
    _json("limits"),
    sa.Column("old_digest", sa.String(64)),
    _time("old_until", nullable=True),
)
key_usage = sa.Table(  # months are texts, `2026-11`
    "key_usage",
    metadata,
    sa.Column("month", sa.String(7), primary_key=True),
    sa.Column("api_key", sa.String(64), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)
limit_leases = sa.Table(
    "limit_leases",
    metadata,
    sa.Column("api_key", sa.String(64), primary_key=True),
    sa.Column("holder", sa.String(128), primary_key=True),  # one life of a gateway
    sa.Column("gateway", sa.String(64), nullable=False),
    _integer("requests"),
    _integer("tokens"),
    _integer("streams"),
    _time("at"),
)
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    _text("role"),
    _time("created_at"),
    _time("expires_at", nullable=True),
    _time("revoked_at", nullable=True),
)
window_scores = sa.Table(
    "window_scores",
    metadata,
    _id(),
    _time("at"),
    _text("model"),
    _integer("version"),
    _text("signal"),
    _time("window_start"),
    _time("window_end"),
    _integer("n"),
    sa.Column("statistic", sa.Float, nullable=False),
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("p_value", sa.Float),
    sa.Column("mean_run_length", sa.Float, nullable=False),
    _text("verdict"),
    _json("detail"),
    _json("request_ids"),
    sa.Index("window_scores_by_stream", "model", "version", "signal", "at"),
)
episodes = sa.Table(
    "episodes",
    metadata,
    _id(),
    _text("model", index=True),
    _integer("version"),
    _text("signal"),
    _text("detector"),
    _text("severity"),
    _text("state"),
    _time("opened_at"),
    _time("updated_at"),
    _time("resolved_at", nullable=True),
    _json("windows"),
    _json("evidence"),
    _text("runbook"),
    _json("done"),
)
# One open episode per problem, whatever runs twice: the database itself refuses the second.
sa.Index(
    "episodes_one_open",
    episodes.c.model,
    episodes.c.version,
    episodes.c.signal,
    unique=True,
    sqlite_where=episodes.c.state != "resolved",
    postgresql_where=episodes.c.state != "resolved",
)
retraining = sa.Table(
    "retraining",
    metadata,
    _id(),
    sa.Column("idempotency_key", sa.String(64), nullable=False, unique=True),
    _text("model", index=True),
    _integer("base_version"),
    _text("episode_id", nullable=True),
    _text("reason"),
    _time("window_start"),
    _time("window_end"),
    _integer("rows"),
    _text("recipe"),
    _text("state", index=True),
    _time("created_at"),
    _time("updated_at"),
    _text("lease_owner", nullable=True),
    _time("lease_until", nullable=True),
    _integer("fencing_token"),
    _integer("attempts"),
    _integer("result_version", nullable=True),
    _text("outcome"),
    _text("held"),
    _time("held_until", nullable=True),
    _text("budget_waived_by", nullable=True),
    sa.Index("retraining_by_time", "created_at", "id"),
)
retraining_runs = sa.Table(
    "retraining_runs",
    metadata,
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("fencing_token", sa.Integer, primary_key=True, autoincrement=False),
    _text("model"),
    _text("worker"),
    _time("started_at"),
    _time("ended_at", nullable=True),
    _text("end"),
    _integer("devices"),
    sa.Column("planned_hours", sa.Float),
    sa.Column("usd_per_hour", Money()),
    _text("basis"),
    sa.Index("retraining_runs_by_model", "model", "started_at"),
)
rollouts = sa.Table(
    "rollouts",
    metadata,
    _id(),
    _text("model", index=True),
    _integer("version"),
    _integer("champion"),
    _json("plan"),
    _text("state", index=True),
    _integer("step", nullable=True),
    _time("since"),
    _integer("revision"),
    _json("taken"),
    _json("checks"),
    _text("by"),
    _text("reason"),
    _time("created_at"),
    _time("updated_at"),
    _text("outcome"),
    _text("lease_owner", nullable=True),
    _time("lease_until", nullable=True),
    _integer("fencing_token"),
    sa.Index("rollouts_by_time", "created_at", "id"),
)
# One open rollout of a model, whoever declares: the database itself refuses the second.
_OPEN_ROLLOUT = rollouts.c.state.in_(("running", "paused"))
sa.Index("rollouts_one_open", rollouts.c.model, unique=True, sqlite_where=_OPEN_ROLLOUT, postgresql_where=_OPEN_ROLLOUT)
aliases = sa.Table(  # one row a model: what MLflow's aliases were last accounted to hold
    "aliases",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    _integer("champion", nullable=True),
    _integer("challenger", nullable=True),
    _integer("revision"),
    _text("pending"),
    _integer("token"),
    _time("at"),
)
policies = sa.Table(
    "policies",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    _text("model"),
    _text("kind"),
    _json("body"),
    _text("by"),
    _text("reason"),
    _time("at"),
    sa.Index("policies_by_model", "model", "kind"),
)
experiments = sa.Table(
    "experiments",
    metadata,
    _id(),
    _text("model", index=True),
    _json("declaration"),
    _json("plan"),
    _text("state"),
    _text("by"),
    _text("reason"),
    _time("created_at"),
    _time("started_at", nullable=True),
    _integer("first_revision", nullable=True),
    _time("stopped_at", nullable=True),
)
# One of a model runs at a time: the database itself refuses the second.
sa.Index(
    "experiments_one_running",
    experiments.c.model,
    unique=True,
    sqlite_where=experiments.c.state == "running",
    postgresql_where=experiments.c.state == "running",
)
deliveries = sa.Table(
    "deliveries",
    metadata,
    _id(),
    _text("episode_id", index=True),
    _text("receiver"),
    _text("transition"),
    _integer("sequence"),
    _time("created_at"),
    _text("state"),
    _integer("attempts"),
    _time("first_at", nullable=True),
    _time("next_at"),
    _time("ended_at", nullable=True),
    _text("error"),
    sa.Index("deliveries_by_state", "state", "next_at"),
    sa.Index("deliveries_by_receiver", "receiver", "state"),
)
silences = sa.Table(
    "silences",
    metadata,
    _id(),
    _text("model"),
    _text("episode_id", nullable=True),
    _text("signal", nullable=True),
    _time("created_at"),
    _time("until", index=True),
    _text("by"),
    _text("reason"),
    _time("revoked_at", nullable=True),
    _text("revoked_by", nullable=True),
)
