"""When somebody last saw to a bandit's step, so that the monitor can tell one that nobody sees to."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nobody has looked yet: the next look of a controller is written down."""
    op.add_column("experiments", sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """What is forgotten each controller finds out for itself."""
    with op.batch_alter_table("experiments") as table:
        table.drop_column("looked_at")
