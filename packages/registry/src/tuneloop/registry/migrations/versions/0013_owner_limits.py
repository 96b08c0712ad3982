"""Limits that all API keys of an owner have together."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """No owner has a limit yet."""
    op.create_table(
        "owner_limits",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("limits", _JSON, nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Owners are forgotten.

    Raises:
        CommandError: an owner has limits, which an older tuneloop would not keep.
    """
    owners = sa.table("owner_limits", sa.column("name"), sa.column("limits", _JSON))
    rows = op.get_bind().execute(sa.select(owners.c.name, owners.c.limits))
    if found := sorted(row.name for row in rows if _limits_something(row.limits)):
        raise CommandError(f"the older schema knows no limits of owners; lift those of {found}")
    op.drop_table("owner_limits")


def _limits_something(limits: object) -> bool:
    return not isinstance(limits, dict) or any(limits[name] is not None for name in limits if name != "priority")
