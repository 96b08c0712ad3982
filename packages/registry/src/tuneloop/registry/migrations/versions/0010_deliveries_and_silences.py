"""What is to be delivered of alert episodes, and silences about them."""

import sqlalchemy as sa
from alembic import op

from tuneloop.registry.tables import UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of episodes that are open already nobody is told until they change."""
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("episode_id", sa.Text, nullable=False, index=True),
        sa.Column("receiver", sa.Text, nullable=False),
        sa.Column("transition", sa.Text, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("first_at", UtcDateTime()),
        sa.Column("next_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("error", sa.Text, nullable=False),
        sa.Index("deliveries_by_state", "state", "next_at"),
        sa.Index("deliveries_by_receiver", "receiver", "state"),
    )
    op.create_table(
        "silences",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("episode_id", sa.Text),
        sa.Column("signal", sa.Text),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False, index=True),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("revoked_at", UtcDateTime()),
        sa.Column("revoked_by", sa.Text),
    )


def downgrade() -> None:
    """An older tuneloop delivers nothing itself; what was delivered and silenced stays in the audit log."""
    op.drop_table("silences")
    op.drop_table("deliveries")
