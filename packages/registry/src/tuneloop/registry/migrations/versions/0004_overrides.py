"""A route can give single keys a version of their own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """No key has one yet."""
    op.add_column("routes", sa.Column("overrides", _JSON, nullable=False, server_default="{}"))


def downgrade() -> None:
    """Every key goes by the split again."""
    with op.batch_alter_table("routes") as table:
        table.drop_column("overrides")
