"""API keys, what they used, the parts of their limits that gateways hold, and tokens."""

from __future__ import annotations

import sqlalchemy as sa

from tuneloop.registry.tables.columns import id_column, integer_column, json_column, metadata, text_column, time_column

api_keys = sa.Table(
    "api_keys",
    metadata,
    id_column(),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    text_column("owner"),
    json_column("models"),
    sa.Column("may_pin", sa.Boolean, nullable=False),
    time_column("created_at"),
    time_column("expires_at", nullable=True),
    time_column("revoked_at", nullable=True),
    json_column("limits"),
    json_column("scopes"),
    sa.Column("old_digest", sa.String(64)),
    time_column("old_until", nullable=True),
)
owner_limits = sa.Table(
    "owner_limits",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    json_column("limits"),
    time_column("changed_at"),
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
    integer_column("requests"),
    integer_column("tokens"),
    integer_column("streams"),
    time_column("at"),
)
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    text_column("role"),
    time_column("created_at"),
    time_column("expires_at", nullable=True),
    time_column("revoked_at", nullable=True),
)
