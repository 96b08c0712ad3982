"""Heartbeats of engines and gateways."""

from __future__ import annotations

import sqlalchemy as sa

from tuneloop.registry.tables.columns import id_column, integer_column, json_column, metadata, text_column, time_column

engines = sa.Table(
    "engines",
    metadata,
    id_column(),
    text_column("url"),
    text_column("base"),
    text_column("base_digest"),
    text_column("template_digest"),
    text_column("state"),
    json_column("adapters"),
    text_column("detail"),
    json_column("pins"),
    integer_column("max_loras"),
    integer_column("max_lora_rank"),
    time_column("at"),
)
gateways = sa.Table(
    "gateways",
    metadata,
    id_column(),
    text_column("url"),
    json_column("applied"),
    json_column("in_flight"),
    integer_column("dropped_records"),
    time_column("at"),
)
