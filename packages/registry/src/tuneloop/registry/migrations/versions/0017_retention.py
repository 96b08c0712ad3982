"""What is older than allowed is found by its age: indexes of requests, copies, feedback, windows and episodes that have
text still, and all copies of a model by their time."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_REQUESTS = "messages <> '[]' OR answer IS NOT NULL OR error <> '(deleted)'"
_SHOWN = "replace(CAST({0} AS TEXT), '\"question\": \"(deleted)\"', '')"
_SHOWS = "replace(" + _SHOWN + ", '\"question\": \"', '') <> " + _SHOWN
_INDEXES = (
    ("requests_with_text", "requests", ["model", "at"], _REQUESTS),
    ("shadow_requests_with_text", "shadow_requests", ["model", "at"], _REQUESTS),
    ("feedback_with_text", "feedback", ["at"], "comment IS NOT NULL OR label IS NOT NULL OR correction <> '(deleted)'"),
    ("window_scores_with_questions", "window_scores", ["model", "window_start"], _SHOWS.format("detail")),
    ("episodes_with_questions", "episodes", ["model"], _SHOWS.format("evidence")),
)


def upgrade() -> None:
    """Nothing but indexes: what is stored stays as it is, and for as long, until a policy says otherwise."""
    op.create_index("shadow_requests_by_model_time", "shadow_requests", ["model", "at"])
    for name, table, columns, where in _INDEXES:
        condition = sa.text(where)
        op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    """An older tuneloop deletes nothing by age."""
    for name, table, _, _ in reversed(_INDEXES):
        op.drop_index(name, table)
    op.drop_index("shadow_requests_by_model_time", "shadow_requests")
