"""What retraining runs took, so that budgets can hold the next one; who trained what was approved."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Nothing is held yet, and neither what earlier runs took nor who trained is known."""
    op.add_column("approvals", sa.Column("trained_by", sa.Text(), nullable=True))
    op.add_column("retraining", sa.Column("held", sa.Text(), nullable=False, server_default=""))
    op.add_column("retraining", sa.Column("held_until", _TIME, nullable=True))
    op.add_column("retraining", sa.Column("budget_waived_by", sa.Text(), nullable=True))
    op.create_table(
        "retraining_runs",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("fencing_token", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.Column("end", sa.Text(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("planned_hours", sa.Float(), nullable=True),
        sa.Column("usd_per_hour", sa.Text(), nullable=True),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "fencing_token"),
    )
    op.create_index("retraining_runs_by_model", "retraining_runs", ["model", "started_at"])


def downgrade() -> None:
    """Forget budgets and what runs took.

    Raises:
        CommandError: a request is held by a budget, which an older tuneloop would let run, or has expired, a state it
            cannot read.
    """
    requests = sa.table("retraining", sa.column("id"), sa.column("state"), sa.column("held"))
    ends = ("shipped", "rejected", "failed", "cancelled")
    waits = sa.and_(requests.c.held != "", requests.c.state.not_in(ends))
    unknown = sa.select(requests.c.id).where(sa.or_(waits, requests.c.state == "expired"))
    if found := list(op.get_bind().execute(unknown).scalars()):
        raise CommandError(f"the older schema cannot say that a budget holds requests or that they expired: {found}")
    with op.batch_alter_table("approvals") as table:
        table.drop_column("trained_by")
    op.drop_table("retraining_runs")
    with op.batch_alter_table("retraining") as table:
        for column in ("held", "held_until", "budget_waived_by"):
            table.drop_column(column)
