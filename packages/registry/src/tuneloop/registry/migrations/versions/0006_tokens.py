"""Tokens of the control plane, and the role of the token an approval came from."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Approvals until now came from the command line, which gives no role."""
    op.create_table(
        "tokens",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
    )
    op.add_column("approvals", sa.Column("role", sa.Text, nullable=True))
    op.create_index("retraining_by_time", "retraining", ["created_at", "id"])


def downgrade() -> None:
    """Approvals stay, as from the command line; no token opens anything any more."""
    op.drop_index("retraining_by_time", "retraining")
    with op.batch_alter_table("approvals") as table:
        table.drop_column("role")
    op.drop_table("tokens")
