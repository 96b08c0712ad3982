"""A route can name a shadow, and what shadows answer is kept apart from what users asked."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """No route has a shadow yet."""
    op.add_column("routes", sa.Column("shadow", _JSON, nullable=True))
    op.create_table(
        "shadow_requests",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=True),
        sa.Column("assigned_version", sa.Integer, nullable=True),
        sa.Column("served_version", sa.Integer, nullable=True),
        sa.Column("engine", sa.Text, nullable=True),
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("key_source", sa.Text, nullable=False),
        sa.Column("api_key", sa.Text, nullable=True),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("error", sa.Text, nullable=True),
        sa.Column("prompt_tokens", sa.Integer, nullable=True),
        sa.Column("completion_tokens", sa.Integer, nullable=True),
        sa.Column("queue_ms", sa.Float, nullable=True),
        sa.Column("ttft_ms", sa.Float, nullable=True),
        sa.Column("total_ms", sa.Float, nullable=False),
        sa.Column("guards", _JSON, nullable=False),
        sa.Column("messages", _JSON, nullable=False),
        sa.Column("answer", sa.Text, nullable=True),
        sa.Column("shadow_of", sa.Text, nullable=False),
    )
    op.create_index("ix_shadow_requests_shadow_of", "shadow_requests", ["shadow_of"])
    op.create_index("shadow_requests_by_version_time", "shadow_requests", ["model", "served_version", "at"])


def downgrade() -> None:
    """Shadows end and what they answered is forgotten; their versions stay loaded, and nobody notices."""
    op.drop_table("shadow_requests")
    with op.batch_alter_table("routes") as table:
        table.drop_column("shadow")
