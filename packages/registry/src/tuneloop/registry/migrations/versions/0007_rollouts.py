"""Rollouts are kept, what MLflow's aliases were last accounted to hold, and which share of the keys is held out."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
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
    """Forget the rollouts that are over; a share stays where one had brought it.

    Raises:
        CommandError: one is open, or a route holds keys out, which would get whatever the split says.
    """
    connection, of_each = op.get_bind(), sa.table("rollouts", sa.column("id"), sa.column("state"))
    opened = sa.select(of_each.c.id).where(of_each.c.state.in_(("running", "paused")))
    if found := list(connection.execute(opened).scalars()):
        raise CommandError(f"the older schema knows no rollouts; abort those that are open: {found}")
    route = sa.table("routes", sa.column("model"), sa.column("revision"), sa.column("holdout_bp"))
    newest = sa.select(route.c.model, sa.func.max(route.c.revision)).group_by(route.c.model)
    holding = sa.select(route.c.model).where(
        route.c.holdout_bp > 0, sa.tuple_(route.c.model, route.c.revision).in_(newest)
    )
    if found := list(connection.execute(holding).scalars()):
        raise CommandError(f"the older schema holds no keys out; set the holdout of these models to 0: {found}")
    op.drop_table("aliases")
    op.drop_table("rollouts")
    with op.batch_alter_table("routes") as table:
        table.drop_column("holdout_bp")
