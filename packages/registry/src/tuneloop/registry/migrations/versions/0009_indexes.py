"""Indexes for what is asked often: a version's newest requests, the running rollouts, and pages of them."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing but indexes: what is stored stays as it is."""
    op.create_index("requests_by_version_time", "requests", ["model", "served_version", "at"])
    op.create_index("ix_rollouts_state", "rollouts", ["state"])
    op.create_index("rollouts_by_time", "rollouts", ["created_at", "id"])


def downgrade() -> None:
    """An older tuneloop reads the same, more slowly."""
    op.drop_index("rollouts_by_time", "rollouts")
    op.drop_index("ix_rollouts_state", "rollouts")
    op.drop_index("requests_by_version_time", "requests")
