"""An approval can end or be revoked: decisions are appended, the newest counts."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

from tuneloop.registry.tables import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Take every approval over as one that never ends."""
    decisions = op.create_table(
        "approvals_after",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("granted", sa.Boolean(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    before = _approvals("approvals")
    taken = sa.select(*(before.c[name] for name in _KEPT), sa.literal(True)).order_by(before.c.at)
    op.execute(sa.insert(decisions).from_select([*_KEPT, "granted"], taken))
    op.drop_table("approvals")
    op.rename_table("approvals_after", "approvals")
    op.create_index("approvals_by_version", "approvals", ["model", "version"])


def downgrade() -> None:
    """Keep of each version the newest decision where it is an approval without an end: all the older schema can say.

    Raises:
        CommandError: a version was revoked, which an older tuneloop would not know and might let in by its gate.
    """
    after = _approvals("approvals", sa.column("id"), sa.column("granted", sa.Boolean), sa.column("expires_at"))
    newest = sa.select(sa.func.max(after.c.id)).group_by(after.c.model, after.c.version)
    revoked = sa.select(after.c.model, after.c.version).where(after.c.id.in_(newest), sa.not_(after.c.granted))
    if names := [f"{model}@{version}" for model, version in op.get_bind().execute(revoked)]:
        raise CommandError(f"the older schema cannot say that versions are revoked: {', '.join(names)}")
    op.create_table(
        "approvals_before",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("model", "version"),
    )
    kept = sa.select(*(after.c[name] for name in _KEPT)).where(
        after.c.id.in_(newest), after.c.granted, after.c.expires_at.is_(None)
    )
    op.execute(sa.insert(_approvals("approvals_before")).from_select(list(_KEPT), kept))
    op.drop_table("approvals")
    op.rename_table("approvals_before", "approvals")


_KEPT = ("model", "version", "by", "reason", "at")


def _approvals(name: str, *more: sa.ColumnClause[Any]) -> sa.TableClause:
    texts = (sa.column(text, sa.Text) for text in ("model", "by", "reason"))
    return sa.table(name, *texts, sa.column("version", sa.Integer), sa.column("at", UtcDateTime()), *more)
