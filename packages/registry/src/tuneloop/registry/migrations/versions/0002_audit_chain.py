"""The audit log is append-only for the database too, and each entry's hash holds the one before it."""

import hashlib
import json
from datetime import UTC

import rfc8785
import sqlalchemy as sa
from alembic import op

from tuneloop.registry.tables import Json, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_REFUSED = "the audit log is append-only"
_AUDIT = sa.table(
    "audit",
    sa.column("id", sa.Integer),
    sa.column("at", UtcDateTime()),
    *(sa.column(name, sa.Text) for name in ("actor", "action", "subject", "hash")),
    sa.column("detail", Json),
)
_HEAD = sa.table("audit_head", sa.column("id", sa.Integer), sa.column("hash", sa.Text))


def upgrade() -> None:
    """Chain what is there, then let nobody change it."""
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("audit", sa.Column("hash", sa.String(length=64), nullable=True))
    connection, newest, previous = op.get_bind(), 0, "0" * 64
    for row in connection.execute(sa.select(_AUDIT).order_by(_AUDIT.c.id)).mappings().all():
        newest, previous = row["id"], _chained(previous, row)
        connection.execute(sa.update(_AUDIT).where(_AUDIT.c.id == newest).values(hash=previous))
    connection.execute(sa.insert(_HEAD).values(id=newest, hash=previous))
    with op.batch_alter_table("audit") as table:
        table.alter_column("hash", existing_type=sa.String(length=64), nullable=False)
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    """Forget the hashes; the entries stay."""
    if op.get_bind().dialect.name == "sqlite":
        for event in ("update", "delete"):
            op.execute(f"DROP TRIGGER audit_no_{event}")
    else:
        for event in ("change", "truncate"):
            op.execute(f"DROP TRIGGER audit_no_{event} ON audit")
        op.execute("DROP FUNCTION audit_refused()")
    with op.batch_alter_table("audit") as table:
        table.drop_column("hash")
    op.drop_table("audit_head")


def _chained(previous: str, row: sa.RowMapping) -> str:
    try:
        said = {name: row[name] for name in ("id", "actor", "action", "subject")}
        said |= {"at": row["at"].astimezone(UTC).isoformat(timespec="microseconds"), "previous": previous}
        said["detail"] = json.loads(json.dumps(row["detail"]), parse_int=float)
        return hashlib.sha256(rfc8785.dumps(said)).hexdigest()
    except (ValueError, TypeError, AttributeError):  # a damaged entry stays one: its hash fits nothing
        return previous


_SQLITE = [
    f"CREATE TRIGGER audit_no_{event} BEFORE {event.upper()} ON audit BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END"
    for event in ("update", "delete")
]
_POSTGRESQL = [
    f"CREATE FUNCTION audit_refused() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_REFUSED}'; END $$",
    "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit EXECUTE FUNCTION audit_refused()",
]
