"""Experiments: declared, started, stopped; one of a model runs at a time."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)
_RUNNING = sa.text("state = 'running'")


def upgrade() -> None:
    """There are none yet."""
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("declaration", _JSON, nullable=False),
        sa.Column("plan", _JSON, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("first_revision", sa.Integer(), nullable=True),
        sa.Column("stopped_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_experiments_model", "experiments", ["model"])
    op.create_index(
        "experiments_one_running",
        "experiments",
        ["model"],
        unique=True,
        sqlite_where=_RUNNING,
        postgresql_where=_RUNNING,
    )


def downgrade() -> None:
    """An older tuneloop knows no experiments; what happened to them stays in the audit log.

    Raises:
        CommandError: one is running, and its declaration would be lost with what it has seen.
    """
    kept = sa.table("experiments", sa.column("id"), sa.column("state"))
    if found := list(op.get_bind().execute(sa.select(kept.c.id).where(kept.c.state == "running")).scalars()):
        raise CommandError(f"the older schema knows no experiments; stop those that run: {found}")
    op.drop_table("experiments")
