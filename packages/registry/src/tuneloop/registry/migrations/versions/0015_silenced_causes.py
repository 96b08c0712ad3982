"""A silence of an episode knows what it was asked for, so that what joins the episode of another cause is told."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """Of what is silenced already that is not known: it stays quiet, whatever joins."""
    op.add_column("silences", sa.Column("cause", sa.Text, nullable=True))
    op.add_column("silences", sa.Column("signals", _JSON, nullable=True))


def downgrade() -> None:
    """Silences of episodes keep everything quiet again."""
    with op.batch_alter_table("silences") as table:
        table.drop_column("signals")
        table.drop_column("cause")
