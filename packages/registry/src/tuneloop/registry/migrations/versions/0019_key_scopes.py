"""API keys may open some endpoints only."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """Keys that are there open every endpoint, as before."""
    op.add_column("api_keys", sa.Column("scopes", _JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """An older tuneloop lets every key do everything.

    Raises:
        CommandError: a key that is not revoked opens some endpoints only.
    """
    keys = sa.table("api_keys", sa.column("id"), sa.column("scopes", _JSON), sa.column("revoked_at"))
    rows = op.get_bind().execute(sa.select(keys.c.id, keys.c.scopes).where(keys.c.revoked_at.is_(None)))
    if found := sorted(row.id for row in rows if row.scopes != []):
        raise CommandError(f"the older schema knows no scopes; revoke these keys, which would open more: {found}")
    with op.batch_alter_table("api_keys") as table:
        table.drop_column("scopes")
