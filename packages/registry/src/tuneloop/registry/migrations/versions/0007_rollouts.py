"""Rollouts are kept, what MLflow's aliases were last accounted to hold, and which share of the keys is held out."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_OPEN = sa.text("state IN ('running', 'paused')")


def upgrade() -> None:
    """No rollout is open, nobody is held out; the aliases are accounted for at the first look."""
    op.add_column("routes", sa.Column("holdout_bp", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("model", sa.Text, nullable=False, index=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("champion", sa.Integer, nullable=False),
        sa.Column("plan", _JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("taken", _JSON, nullable=False),
        sa.Column("checks", _JSON, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("lease_owner", sa.Text, nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fencing_token", sa.Integer, nullable=False),
    )
    op.create_index("rollouts_one_open", "rollouts", ["model"], unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)
    op.create_table(
        "aliases",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("champion", sa.Integer, nullable=True),
        sa.Column("challenger", sa.Integer, nullable=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("pending", sa.Text, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """A share stays where its rollout had brought it and nobody raises it any more; every key goes by the split."""
    op.drop_table("aliases")
    op.drop_table("rollouts")
    with op.batch_alter_table("routes") as table:
        table.drop_column("holdout_bp")
