"""What one process at a time may do, wherever it runs: a lock by name, as wide as the database.

`alone` is for work that takes long: it ends with its holder, also one that was killed, so that whoever gets it knows
that what is half done was left behind. On PostgreSQL a connection holds it; where that is lost meanwhile the lock is,
too, so what must not happen twice is asked for once more right before it is done. An SQLite file has its locks beside
it. `in_turn` is for a transaction that writes by what it has read.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.database import Database

_log = logging.getLogger(__name__)


@contextmanager
def alone(database: Database, what: str) -> Iterator[bool]:
    """Whether nobody else on this database does `what` now, and nobody begins to until the block ends.

    Raises:
        DatabaseAway: the database does not answer.
    """
    name = _name(what)
    with _of_file(database, name) if database.is_sqlite else _of_server(database, name) as mine:
        yield mine


def in_turn(database: Database, connection: Connection, what: str) -> None:
    """Go on in a `writing` transaction once no other one is under way that has asked for `what`: what those wrote is
    read from here on."""
    if not database.is_sqlite:  # which has one writer at a time anyway
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), _key(_name(what)))


def _name(what: str) -> bytes:
    return hashlib.sha256(what.encode()).digest()[:8]


def _key(name: bytes) -> dict[str, int]:
    return {"key": int.from_bytes(name, signed=True)}


@contextmanager
def _of_server(database: Database, name: bytes) -> Iterator[bool]:
    key = _key(name)
    with database.reading() as connection:
        mine = bool(connection.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), key).scalar())
        connection.commit()  # the lock is the connection's: in a transaction it would soon be idle for too long
        try:
            yield mine
        finally:
            try:
                if mine:
                    connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), key)
                    connection.commit()
            except sa.exc.DBAPIError as error:  # the lock went with its connection
                _log.warning("the connection that held a lock was lost: %s", error)
                connection.invalidate()


@contextmanager
def _of_file(database: Database, name: bytes) -> Iterator[bool]:
    folder = Path(f"{database.url.database}.locks")
    folder.mkdir(exist_ok=True)
    path = folder / name.hex()
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            yield False
            return
        if path.exists() and os.path.samestat(os.fstat(held), path.stat()):
            break
        os.close(held)  # its former holder has just removed it
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(held)
