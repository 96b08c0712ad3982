"""Limits of API keys, their rotation, what they used in a month, and how gateways share a limit out."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """No key has a limit yet, and what was used until now is not counted."""
    op.add_column("api_keys", sa.Column("limits", _JSON, nullable=False, server_default="{}"))
    op.add_column("api_keys", sa.Column("old_digest", sa.String(64), nullable=True))
    op.add_column("api_keys", sa.Column("old_until", _TIME, nullable=True))
    op.create_table(
        "key_usage",
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("api_key", sa.String(64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("month", "api_key", "model"),
    )
    op.create_table(
        "limit_leases",
        sa.Column("api_key", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("gateway", sa.String(64), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("streams", sa.Integer(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("api_key", "holder"),
    )


def downgrade() -> None:
    """What keys used is forgotten, and old secrets in their time of grace open nothing any more.

    Raises:
        CommandError: a key that is not revoked has limits, which an older tuneloop would not keep.
    """
    keys = sa.table("api_keys", sa.column("id"), sa.column("limits", _JSON), sa.column("revoked_at"))
    rows = op.get_bind().execute(sa.select(keys.c.id, keys.c.limits).where(keys.c.revoked_at.is_(None)))
    if found := sorted(row.id for row in rows if _limits_something(row.limits)):
        raise CommandError(f"the older schema knows no limits; lift those of these keys: {found}")
    op.drop_table("limit_leases")
    op.drop_table("key_usage")
    with op.batch_alter_table("api_keys") as table:
        for column in ("limits", "old_digest", "old_until"):
            table.drop_column(column)


def _limits_something(limits: object) -> bool:
    return not isinstance(limits, dict) or any(limits[name] is not None for name in limits if name != "priority")
