"""Who did what, when and why: written in the same transaction as the thing itself, never changed.

Each entry's hash is the SHA-256 of its canonical JSON (RFC 8785) with the hash of the entry before it, and the newest
entry is kept a second time in `audit_head`: a changed, removed or inserted entry is found, at the end of the log too.
Whoever may write the whole database can write the whole log anew; only a hash noted elsewhere tells of that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import rfc8785
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tuneloop.registry.database import Database, Rows, readable, write_last
from tuneloop.registry.errors import InvalidInput, Unreadable
from tuneloop.registry.nouns import AuditEntry
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import audit, audit_head

FIRST_HASH = "0" * 64  # what the first entry follows
_CHUNK_ROWS = 1_000
_SQLITE_TRIGGERS = ("audit_no_update", "audit_no_delete", "audit_in_order")
_POSTGRESQL_TRIGGERS = ("audit_no_change", "audit_no_truncate", "audit_in_order")
_log = logging.getLogger(__name__)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Verification:
    """What a look at the whole log found."""

    entries: int
    newest: int  # its id; 0 in an empty log
    hash: str  # of the newest entry: note it where nobody who writes the database can write
    noted: int | None  # the entry whose hash had been noted
    faults: tuple[str, ...]  # none: every entry is as it was written, and none is missing


def record(
    connection: Connection, *, at: datetime, actor: str, action: str, subject: str, detail: dict[str, Any]
) -> None:
    """Append one entry at the end of the caller's `writing` transaction.

    Raises:
        InvalidInput: nobody is named, or the entry holds what is no text.
    """
    if not actor.strip():
        raise InvalidInput(f"{action} of {subject} needs a name of who does it: it is kept for ever")
    entry = {"at": at, "actor": actor, "action": action, "subject": subject, "detail": detail}
    try:
        chained(FIRST_HASH, {"id": 0, **entry})
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{action} of {subject!r} cannot be kept: {error}; write it in valid Unicode") from None
    write_last(connection, lambda: _append(connection, entry))


def _append(connection: Connection, entry: Mapping[str, Any]) -> None:
    """Chain an entry to the head, which is locked until the transaction ends.

    Past the head only somebody else can have written: this goes on behind it, and says so, as `verify` does.
    """
    head = connection.execute(sa.select(audit_head).with_for_update()).mappings().one_or_none()
    newest = connection.execute(sa.select(audit.c.id, audit.c.hash).order_by(audit.c.id.desc()).limit(1)).one_or_none()
    if head is None:
        raise Unreadable(
            "the audit log's newest entry is not known: the row of audit_head was deleted; bring it back from a copy "
            "of the database, since nothing can be put on record before"
        )
    last, last_hash = newest or (0, FIRST_HASH)
    if (last, last_hash) != (head["id"], head["hash"]):
        _log.warning(
            "the audit log ends with entry %d, and the newest that tuneloop wrote is %d: somebody else has written to "
            "it; `tuneloop audit --verify` names the places",
            last,
            head["id"],
        )
    values = {"id": max(last, head["id"]) + 1, **entry}
    values["hash"] = chained(head["hash"], values)
    connection.execute(sa.insert(audit).values(values))
    connection.execute(sa.update(audit_head).values(id=values["id"], hash=values["hash"]))


def chained(previous: str, entry: Mapping[str, Any] | RowMapping) -> str:
    """The hash of an entry that follows the one with the hash `previous`: 64 hexadecimal digits.

    Raises:
        ValueError, TypeError, AttributeError, RecursionError: the entry holds what `record` never writes.
    """
    said = {name: entry[name] for name in ("id", "actor", "action", "subject")}
    said |= {"at": entry["at"].astimezone(UTC).isoformat(timespec="microseconds"), "previous": previous}
    # To RFC 8785 every number is a double; the databases give 1e16 back as a float or as an integer.
    said["detail"] = json.loads(json.dumps(entry["detail"]), parse_int=float)
    return hashlib.sha256(rfc8785.dumps(said)).hexdigest()


class Audit:
    """Reading the audit log."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def entries(self, subject: str | None = None, limit: int = 100, *, action: str | None = None) -> Rows[AuditEntry]:
        """The newest entries first, of one subject (a model, version or request name) or all; of one action, or all."""
        query = _entries(subject, action).order_by(audit.c.id.desc()).limit(limit)
        with self._db.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return readable(AuditEntry, rows)

    def about_model(
        self, model: str, actions: Sequence[str], *, since: datetime, until: datetime, limit: int = 200
    ) -> Rows[AuditEntry]:
        """What was done to a model, its versions or all models within a time by one of `actions` (how they begin), the
        newest first."""
        subject = audit.c.subject
        about = sa.or_(subject.in_([model, "*"]), subject.startswith(f"{model}@", autoescape=True))
        done = sa.or_(*(audit.c.action.startswith(action) for action in actions))
        newest = sa.select(audit).where(audit.c.at >= since, audit.c.at <= until, about, done)
        with self._db.reading() as connection:
            rows = connection.execute(newest.order_by(audit.c.id.desc()).limit(limit)).mappings().all()
        return readable(AuditEntry, rows)

    def page(self, ask: Ask, subject: str | None = None, *, action: str | None = None) -> Page[AuditEntry]:
        """The same, page by page."""
        return page(self._db, AuditEntry, _entries(subject, action), (audit.c.id,), ask)

    def verify(self, noted: str | None = None) -> Verification:
        """Read the whole log, in bounded memory, and name every place where it is not what was written.

        Args:
            noted: the hash of an entry as it was noted earlier, outside of the database.

        Raises:
            InvalidInput: `noted` is no such hash.
        """
        if noted is not None and (noted == FIRST_HASH or not _HASH.fullmatch(noted)):
            raise InvalidInput(f"{noted!r} is no hash of an entry: 64 digits of 0-9 and a-f, as --verify prints them")
        faults: list[str] = []
        entries, newest, previous, seen = 0, 0, FIRST_HASH, None
        ends = sa.select(sa.select(sa.func.max(audit.c.id)).scalar_subquery().label("last"))
        with self._db.reading() as connection:
            last = connection.execute(ends.add_columns(_head("id"), _head("hash"))).mappings().one()
            unguarded = _missing_triggers(connection)
            # What is written while this reads is the next look's.
            query = sa.select(audit).where(audit.c.id <= (last["last"] or 0)).order_by(audit.c.id)
            for row in connection.execute(query.execution_options(yield_per=_CHUNK_ROWS)).mappings():
                if not _follows(previous, row):
                    faults.append(f"entry {row['id']}, or what stood right before it, is not what was written")
                entries, newest, previous = entries + 1, row["id"], row["hash"]
                seen = newest if previous == noted else seen
        if last["id"] is None:
            faults.append("audit_head, which knows the newest entry, is empty: its row was deleted")
        elif newest > last["id"]:
            faults.append(f"entry {newest} was not written by tuneloop: the newest that was is {last['id']}")
        elif (last["id"], last["hash"]) != (newest, previous):
            faults.append(
                f"entry {newest} is not the newest that was written, {last['id']}: entries after it were removed, or "
                "audit_head was changed"
            )
        if noted is not None and seen is None:
            faults.append(
                f"no entry has the noted hash {noted}: it is another log's, or this one was written anew since"
            )
        faults += [
            f"the database does not refuse changes of the log any more: its trigger {name} is gone, switched off or "
            "another; bring it back from a copy of the database"
            for name in unguarded
        ]
        return Verification(entries, newest, previous, seen, tuple(faults))


def _missing_triggers(connection: Connection) -> list[str]:
    """Those by which the database refuses changes, as far as they are not there, or refuse nothing."""
    if connection.dialect.name == "sqlite":
        query = (
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit' AND sql LIKE '%RAISE(ABORT%'"
        )
        expected: tuple[str, ...] = _SQLITE_TRIGGERS
    else:
        query = (
            "SELECT tgname FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid "
            "WHERE tgrelid = CAST('audit' AS regclass) AND tgenabled IN ('O', 'A') AND prosrc LIKE '%RAISE EXCEPTION%'"
        )
        expected = _POSTGRESQL_TRIGGERS
    there = set(connection.execute(sa.text(query)).scalars())
    return [name for name in expected if name not in there]


def _entries(subject: str | None, action: str | None) -> sa.Select[Any]:
    query = sa.select(audit)
    if subject is not None:
        query = query.where(audit.c.subject == subject)
    return query if action is None else query.where(audit.c.action == action)


def _head(name: str) -> sa.Label[Any]:
    return sa.select(audit_head.c[name]).limit(1).scalar_subquery().label(name)


def _follows(previous: str, row: RowMapping) -> bool:
    try:
        return bool(chained(previous, row) == row["hash"])
    except (ValueError, TypeError, AttributeError, RecursionError):  # not even of the kind that is written
        return False
