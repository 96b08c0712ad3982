"""Deletion by user: what is on record of one sticky key, its requests with their text, their copies and their feedback.

What the monitor shows of their questions, in its windows and episodes, is blanked. A user is known by the hash that
records keep, and the audit log keeps no more: who was forgotten, when, by whom and how much. It is what later writes
are held against, too: a record from before, which lay on a gateway's disk or waited in its memory, is not stored any
more, nor is feedback on what was deleted, of which the ids are kept. A client's own id may be another user's too, with
the same API key: what is said of one after the deletion may be of a live request and is taken. What was counted
(`usage`) stays; it is about keys, not users.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.client_ids import WAITING, waiting_for
from tuneloop.registry.database import Database
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.examples import blank_examples
from tuneloop.registry.nouns import Feedback, Noun, RequestRecord
from tuneloop.registry.routes.assignment import key_hash
from tuneloop.registry.tables import audit as audit_table
from tuneloop.registry.tables import audit_head, feedback, forgotten_requests, requests, shadow_requests

ACTION = "user.forget"
_LOCK = 7_463_003  # of PostgreSQL's advisory locks: whoever stores records shares it, whoever forgets has it alone
_AT_ONCE = 500
MOST_BYTES = 512  # of a key, as gateways take them
_HASHED = re.compile(r"[0-9a-f]{32}")
Late = tuple[RequestRecord, datetime]  # a record that came too late, and when its user was forgotten


class Forgotten(Noun):
    """What one deletion took; nothing where it was all gone before."""

    key_hash: str
    model: str | None  # None: of every model
    requests: int
    copies: int  # that shadows answered
    feedback: int


def hash_of(user: str, *, hashed: bool = False) -> str:
    """What records know a user by; `hashed` says that `user` is that already.

    Raises:
        InvalidInput: it is none.
    """
    if hashed:
        if not _HASHED.fullmatch(user):
            raise InvalidInput("that is no hash of a user's key: 32 letters of 0-9 and a-f, as records keep it")
        return user
    if not user or len(user.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise InvalidInput(f"a user's key has 1 to {MOST_BYTES} bytes: what `x-tuneloop-unit` or `user` was sent as")
    return key_hash(user)


def forget(database: Database, hashed: str, model: str | None, *, at: datetime, by: str, reason: str) -> Forgotten:
    """Delete what is on record of a user, of one model or of all."""
    theirs = _theirs(hashed, model)
    with database.reading() as connection:
        known = set(connection.execute(sa.select(requests.c.id).where(theirs)).scalars())
    sum(blank_examples(database, known.intersection))  # first: of what is deleted nobody knows any more whose it was
    with database.writing() as connection:
        hold(connection, database, alone=True)
        asked = connection.execute(sa.select(requests.c.id, requests.c.client_id).where(theirs)).all()
        last = {row.id for row in asked}
        names = [*last, *waiting_for(row.client_id for row in asked if row.client_id)]
        opinions = _bury(connection, database, names, at)
        found = _delete(connection, hashed, model, opinions)
        detail = found.model_dump(exclude={"key_hash"}) | {"reason": reason}
        audit.record(connection, at=at, actor=by, action=ACTION, subject=f"user:{hashed}", detail=detail)
    sum(blank_examples(database, (known | last).intersection))  # what was judged meanwhile
    return found


def hold(connection: Connection, database: Database, *, alone: bool = False) -> None:
    """Keep forgetting and storing apart until the transaction ends; SQLite has one writer at a time anyway.

    Else a record could be stored by whoever looked before somebody was forgotten, after their records are gone.
    """
    if not database.is_sqlite:
        name = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        connection.execute(sa.text(f"SELECT {name}({_LOCK})"))


def keep_out(connection: Connection, database: Database, late: Sequence[Late]) -> None:
    """Delete the feedback on records that came too late to be stored, and take none on them any more."""
    ends: defaultdict[datetime, list[str]] = defaultdict(list)
    for record, end in late:
        ends[end] += [record.id, *waiting_for([record.client_id] if record.client_id else [])]
    for end, names in ends.items():
        _bury(connection, database, names, end)


def gone(connection: Connection, items: Collection[Feedback]) -> set[str]:
    """Those of these, by id, that are on requests that were deleted with their users."""
    named = forgotten_requests.c.id.in_({item.request_id for item in items})
    ends = {row.id: row.at for row in connection.execute(sa.select(forgotten_requests).where(named))}
    return {
        item.id
        for item in items
        if (end := ends.get(item.request_id)) and (item.at <= end or not item.request_id.startswith(WAITING))
    }


def deleted_of(connection: Connection, request_ids: Sequence[str]) -> set[str]:
    """Those of these requests that were deleted with their users."""
    found: set[str] = set()
    for start in range(0, len(request_ids), _AT_ONCE):
        named = forgotten_requests.c.id.in_(request_ids[start : start + _AT_ONCE])
        found.update(connection.execute(sa.select(forgotten_requests.c.id).where(named)).scalars())
    return found


def _bury(connection: Connection, database: Database, names: Sequence[str], at: datetime) -> int:
    """Remember that the requests of these names were deleted then, and delete the feedback on them; returns how many.

    Of what waits, what came later stays: it may be of another user's request.
    """
    if not names:
        return 0
    insert = database.insert(forgotten_requests)
    newest = sa.case((insert.excluded.at > forgotten_requests.c.at, insert.excluded.at), else_=forgotten_requests.c.at)
    buried = insert.on_conflict_do_update(index_elements=["id"], set_={"at": newest})
    connection.execute(buried, [{"id": name, "at": at} for name in sorted(set(names))])
    until = ~feedback.c.request_id.startswith(WAITING, autoescape=True) | (feedback.c.at <= at)
    opinions = 0
    for start in range(0, len(names), _AT_ONCE):
        theirs = feedback.c.request_id.in_(names[start : start + _AT_ONCE])
        opinions += connection.execute(sa.delete(feedback).where(theirs, until)).rowcount
    return opinions


def _theirs(hashed: str, model: str | None, table: sa.Table = requests) -> sa.ColumnElement[bool]:
    mine = table.c.key_hash == hashed
    return mine if model is None else mine & (table.c.model == model)


def _delete(connection: Connection, hashed: str, model: str | None, opinions: int) -> Forgotten:
    theirs, copied = _theirs(hashed, model), _theirs(hashed, model, shadow_requests)
    copies = connection.execute(sa.delete(shadow_requests).where(copied)).rowcount
    asked = connection.execute(sa.delete(requests).where(theirs)).rowcount
    return Forgotten(key_hash=hashed, model=model, requests=asked, copies=copies, feedback=opinions)


class Memory:
    """Who was forgotten, as the audit log tells: read on from where it was read to before, a row a batch as a rule."""

    def __init__(self) -> None:
        self._read_to = 0
        self._until: dict[tuple[str, str | None], datetime] = {}  # user and model → nothing from before is stored
        self._lock = threading.Lock()

    def late(self, connection: Connection, records: Sequence[RequestRecord]) -> list[Late]:
        """Those of these records that are of a user and a time that was forgotten."""
        with self._lock:
            self._read_on(connection)
            if not self._until:
                return []
            return [(record, end) for record in records if (end := self._end(record)) and record.at <= end]

    def _end(self, record: RequestRecord) -> datetime | None:
        ends = (self._until.get((record.key_hash, model)) for model in (record.model, None))
        return max((end for end in ends if end is not None), default=None)

    def _read_on(self, connection: Connection) -> None:
        newest = connection.execute(sa.select(audit_head.c.id)).scalar() or 0
        if newest <= self._read_to:
            return
        entries = sa.select(audit_table.c.subject, audit_table.c.at, audit_table.c.detail).where(
            audit_table.c.id > self._read_to, audit_table.c.id <= newest, audit_table.c.action == ACTION
        )
        for subject, at, detail in connection.execute(entries):
            which = subject.removeprefix("user:"), detail.get("model")
            self._until[which] = max(at, self._until.get(which, at))
        self._read_to = newest
