"""Retraining requests say until when the corrections that they learn from were said and judged."""

import sqlalchemy as sa
from alembic import op

from tuneloop.registry.tables import UtcDateTime

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What was filed before learns from all that was said until it was filed, as before."""
    op.add_column("retraining", sa.Column("judged_until", UtcDateTime(), nullable=True))


def downgrade() -> None:
    """An older tuneloop learns from all that was said until the filing."""
    with op.batch_alter_table("retraining") as table:
        table.drop_column("judged_until")
