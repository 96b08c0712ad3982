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

_CHUNK_ROWS = 1_000
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
    following = sa.select(_AUDIT).order_by(_AUDIT.c.id).limit(_CHUNK_ROWS)
    while rows := connection.execute(following.where(_AUDIT.c.id > newest)).mappings().all():
        for row in rows:
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
        for trigger in ("no_update", "no_delete", "in_order"):
            op.execute(f"DROP TRIGGER audit_{trigger}")
    else:
        for trigger in ("no_change", "no_truncate", "in_order"):
            op.execute(f"DROP TRIGGER audit_{trigger} ON audit")
        op.execute("DROP FUNCTION audit_refused()")
        op.execute("DROP FUNCTION audit_expected()")
        # The older code lets the database number entries: on from the newest.
        op.execute("SELECT setval(pg_get_serial_sequence('audit', 'id'), (SELECT max(id) FROM audit))")
    with op.batch_alter_table("audit") as table:
        table.drop_column("hash")
    op.drop_table("audit_head")


def _chained(previous: str, row: sa.RowMapping) -> str:
    try:
        said = {name: row[name] for name in ("id", "actor", "action", "subject")}
        said |= {"at": row["at"].astimezone(UTC).isoformat(timespec="microseconds"), "previous": previous}
        said["detail"] = json.loads(json.dumps(row["detail"]), parse_int=float)
        return hashlib.sha256(rfc8785.dumps(said)).hexdigest()
    except (ValueError, TypeError, AttributeError, RecursionError):  # a damaged entry stays one: its hash fits nothing
        return previous


_SQLITE = [
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    # Also INSERT OR REPLACE, which takes a row's place without an UPDATE or DELETE.
    "CREATE TRIGGER audit_in_order BEFORE INSERT ON audit WHEN NEW.id <= (SELECT id FROM audit_head) "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
]
_POSTGRESQL = [
    "CREATE FUNCTION audit_refused() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
    "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit EXECUTE FUNCTION audit_refused()",
    "CREATE FUNCTION audit_expected() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN IF NEW.id <= (SELECT id FROM audit_head) THEN RAISE EXCEPTION 'the audit log is append-only'; END IF; "
    "RETURN NEW; END $$",
    "CREATE TRIGGER audit_in_order BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_expected()",
]
