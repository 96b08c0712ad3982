"""Requests are known by the ids that clients gave them, those that were deleted with their users stay known as such,
and engines tell what they keep loaded whether or not a route names it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from tuneloop.registry.tables import UtcDateTime

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_GIVEN = sa.text("client_id IS NOT NULL")


def upgrade() -> None:
    """Ids that clients gave before are not known, nor what was deleted before; engines say what they pin."""
    op.add_column("requests", sa.Column("client_id", sa.Text, nullable=True))
    op.create_index("requests_by_client_id", "requests", ["client_id"], sqlite_where=_GIVEN, postgresql_where=_GIVEN)
    op.create_table(
        "forgotten_requests",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", UtcDateTime(), nullable=False),
    )
    op.add_column("engines", sa.Column("pins", _JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Feedback by a client's own id that has not found its request finds none any more."""
    with op.batch_alter_table("engines") as table:
        table.drop_column("pins")
    op.drop_table("forgotten_requests")
    op.drop_index("requests_by_client_id", "requests")
    with op.batch_alter_table("requests") as table:
        table.drop_column("client_id")
