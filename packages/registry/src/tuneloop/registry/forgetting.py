"""Deletion by user: what is on record of one sticky key, its requests with their text, their copies and their feedback.

A user is known by the hash that records keep, and the audit log keeps no more: who was forgotten, when, by whom and
how much. It is what later writes are held against, too: a record from before, which lay on a gateway's disk or waited
in its memory, is not stored any more. What was counted (`usage`) stays; it is about keys, not users.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry import audit
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Noun, RequestRecord
from tuneloop.registry.routes.assignment import key_hash
from tuneloop.registry.tables import audit as audit_table
from tuneloop.registry.tables import audit_head, feedback, requests, shadow_requests

ACTION = "user.forget"
MOST_BYTES = 512  # of a key, as gateways take them
_HASHED = re.compile(r"[0-9a-f]{32}")


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


def forget(connection: Connection, hashed: str, model: str | None, *, at: datetime, by: str, reason: str) -> Forgotten:
    """Delete what is on record of a user, of one model or of all, in the caller's `writing` transaction."""
    theirs, copied = requests.c.key_hash == hashed, shadow_requests.c.key_hash == hashed
    if model is not None:
        theirs, copied = theirs & (requests.c.model == model), copied & (shadow_requests.c.model == model)
    named = sa.select(requests.c.id).where(theirs)
    opinions = connection.execute(sa.delete(feedback).where(feedback.c.request_id.in_(named))).rowcount
    copies = connection.execute(sa.delete(shadow_requests).where(copied)).rowcount
    asked = connection.execute(sa.delete(requests).where(theirs)).rowcount
    found = Forgotten(key_hash=hashed, model=model, requests=asked, copies=copies, feedback=opinions)
    detail = found.model_dump(exclude={"key_hash"}) | {"reason": reason}
    audit.record(connection, at=at, actor=by, action=ACTION, subject=f"user:{hashed}", detail=detail)
    return found


class Memory:
    """Who was forgotten, as the audit log tells: read on from where it was read to before, a row a batch as a rule."""

    def __init__(self) -> None:
        self._read_to = 0
        self._until: dict[tuple[str, str | None], datetime] = {}  # user and model → nothing from before is stored
        self._lock = threading.Lock()

    def late(self, connection: Connection, records: Sequence[RequestRecord]) -> set[str]:
        """Those of these records, by id, that are of a user and a time that was forgotten."""
        with self._lock:
            self._read_on(connection)
            if not self._until:
                return set()
            return {record.id for record in records if self._is_late(record)}

    def _is_late(self, record: RequestRecord) -> bool:
        ends = (self._until.get((record.key_hash, model)) for model in (record.model, None))
        return any(end is not None and record.at <= end for end in ends)

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
