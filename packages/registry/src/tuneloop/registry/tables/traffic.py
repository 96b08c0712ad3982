"""Requests, the copies that shadows answered, and feedback."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tuneloop.registry.tables.columns import (
    id_column,
    integer_column,
    json_column,
    metadata,
    partial_index,
    text_column,
    time_column,
)

# What has text, as the indexes of it say; a query finds its way by one only in the same words.
REQUESTS_WITH_TEXT = "messages <> '[]' OR answer IS NOT NULL OR error <> '(deleted)'"
FEEDBACK_WITH_TEXT = "comment IS NOT NULL OR label IS NOT NULL OR correction <> '(deleted)'"


def request_columns() -> list[sa.Column[Any]]:
    return [
        id_column(),
        time_column("at"),
        text_column("model"),
        integer_column("revision", nullable=True),
        integer_column("assigned_version", nullable=True),
        integer_column("served_version", nullable=True),
        text_column("engine", nullable=True),
        text_column("key_hash"),
        text_column("key_source"),
        text_column("api_key", nullable=True),
        text_column("endpoint"),
        sa.Column("stream", sa.Boolean, nullable=False),
        integer_column("status"),
        text_column("error", nullable=True),
        integer_column("prompt_tokens", nullable=True),
        integer_column("completion_tokens", nullable=True),
        sa.Column("queue_ms", sa.Float),
        sa.Column("ttft_ms", sa.Float),
        sa.Column("total_ms", sa.Float, nullable=False),
        json_column("guards"),
        json_column("messages"),
        text_column("answer", nullable=True),
    ]


requests = sa.Table(
    "requests",
    metadata,
    *request_columns(),
    text_column("client_id", nullable=True),
    partial_index("requests_by_client_id", "client_id", where="client_id IS NOT NULL"),
    sa.Index("requests_by_model_time", "model", "at"),
    sa.Index("requests_by_version_time", "model", "served_version", "at"),
    sa.Index("requests_by_user", "key_hash"),
    partial_index("requests_with_text", "model", "at", where=REQUESTS_WITH_TEXT),
)
# Copies that a shadow answered: apart, so that nothing which reads what users asked can take one for theirs.
shadow_requests = sa.Table(
    "shadow_requests",
    metadata,
    *request_columns(),
    text_column("shadow_of", index=True),
    sa.Index("shadow_requests_by_model_time", "model", "at"),
    sa.Index("shadow_requests_by_version_time", "model", "served_version", "at"),
    sa.Index("shadow_requests_by_user", "key_hash"),
    partial_index("shadow_requests_with_text", "model", "at", where=REQUESTS_WITH_TEXT),
)
feedback = sa.Table(
    "feedback",
    metadata,
    id_column(),
    text_column("request_id", index=True),
    time_column("at", index=True),
    sa.Column("score", sa.Float),
    text_column("thumb", nullable=True),
    text_column("label", nullable=True),
    text_column("comment", nullable=True),
    text_column("correction", nullable=True),
    text_column("api_key", nullable=True),
    partial_index("feedback_with_text", "at", where=FEEDBACK_WITH_TEXT),
)
# What was deleted with its user, by id (and by the id that the client gave it), and when: what comes late finds out.
forgotten_requests = sa.Table("forgotten_requests", metadata, id_column(), time_column("at"))
