"""Windows as the monitor judged them, alert episodes, and who is to hear of them or not."""

from __future__ import annotations

import sqlalchemy as sa

from tuneloop.registry.tables.columns import (
    Json,
    id_column,
    integer_column,
    json_column,
    metadata,
    partial_index,
    text_column,
    time_column,
)

BLANK = "(deleted)"  # what an example reads once its user is forgotten, or it is older than allowed
_QUESTION = '"question": "'
_BLANK_QUESTION = f'{_QUESTION}{BLANK}"'


def _shows(column: str) -> str:
    others = f"replace(CAST({column} AS TEXT), '{_BLANK_QUESTION}', '')"
    return f"replace({others}, '{_QUESTION}', '') <> {others}"


def shows_questions(column: str) -> sa.ColumnElement[bool]:
    """Whether there is a question that is not blank in a row's JSON, in the words of the indexes of such rows."""
    return sa.literal_column(f"({_shows(column)})")


window_scores = sa.Table(
    "window_scores",
    metadata,
    id_column(),
    time_column("at"),
    text_column("model"),
    integer_column("version"),
    text_column("signal"),
    time_column("window_start"),
    time_column("window_end"),
    integer_column("n"),
    sa.Column("statistic", sa.Float, nullable=False),
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("p_value", sa.Float),
    sa.Column("mean_run_length", sa.Float, nullable=False),
    text_column("verdict"),
    json_column("detail"),
    json_column("request_ids"),
    sa.Index("window_scores_by_stream", "model", "version", "signal", "at"),
    partial_index("window_scores_with_questions", "model", "window_start", where=_shows("detail")),
)
episodes = sa.Table(
    "episodes",
    metadata,
    id_column(),
    text_column("model", index=True),
    integer_column("version"),
    text_column("signal"),
    text_column("detector"),
    text_column("severity"),
    text_column("state"),
    time_column("opened_at"),
    time_column("updated_at"),
    time_column("resolved_at", nullable=True),
    json_column("windows"),
    json_column("evidence"),
    text_column("runbook"),
    json_column("done"),
    partial_index("episodes_with_questions", "model", where=_shows("evidence")),
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
deliveries = sa.Table(
    "deliveries",
    metadata,
    id_column(),
    text_column("episode_id", index=True),
    text_column("receiver"),
    text_column("transition"),
    integer_column("sequence"),
    time_column("created_at"),
    text_column("state"),
    integer_column("attempts"),
    time_column("first_at", nullable=True),
    time_column("next_at"),
    time_column("ended_at", nullable=True),
    text_column("error"),
    sa.Index("deliveries_by_state", "state", "next_at"),
    sa.Index("deliveries_by_receiver", "receiver", "state"),
)
silences = sa.Table(
    "silences",
    metadata,
    id_column(),
    text_column("model"),
    text_column("episode_id", nullable=True),
    text_column("signal", nullable=True),
    text_column("cause", nullable=True),
    sa.Column("signals", Json, nullable=True),
    time_column("created_at"),
    time_column("until", index=True),
    text_column("by"),
    text_column("reason"),
    time_column("revoked_at", nullable=True),
    text_column("revoked_by", nullable=True),
)
