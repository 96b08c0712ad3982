"""What each API key has used in a month, by model: counted with the records themselves, in the same transaction.

A record that is replayed is not stored twice and so is not counted twice; what was counted stays when records are
deleted. Tokens are kept, not money: the price is a setting of whoever asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from functools import cached_property

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql.compiler import SQLCompiler

from tuneloop.registry.database import Database, Rows, readable
from tuneloop.registry.nouns import KeyUsage, RequestRecord
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import api_keys, key_usage

_KEY = ("month", "api_key", "model")
_COUNTS = ("requests", "prompt_tokens", "completion_tokens")
_VALUES = (*_KEY, *_COUNTS)


def month_name(at: datetime) -> str:
    """`2026-11`, in UTC."""
    at = at.astimezone(UTC)
    return _named(at.year, at.month)


def _named(year: int, month: int) -> str:
    return f"{year:04}-{month:02}"


class Booking:
    """Counts records; its statement is made once, which takes a millisecond."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def book(self, connection: Connection, records: Iterable[RequestRecord]) -> None:
        """Count records that have just been stored for the first time, in the transaction that stores them."""
        sums: dict[tuple[int, int, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        for record in records:
            if record.api_key is not None:
                at = record.at.astimezone(UTC)
                counts = sums[at.year, at.month, record.api_key, record.model]
                counts[0] += 1
                counts[1] += record.prompt_tokens or 0
                counts[2] += record.completion_tokens or 0
        for (year, month, key, model), counts in sorted(sums.items()):  # in one order: nobody waits in a circle
            values = dict(zip(_VALUES, (_named(year, month), key, model, *counts), strict=True))
            order = self._upsert.positiontup  # None where the driver goes by names
            connection.exec_driver_sql(
                str(self._upsert), values if order is None else tuple(values[name] for name in order)
            )

    @cached_property
    def _upsert(self) -> SQLCompiler:
        insert = self._db.insert(key_usage)
        more = {name: key_usage.c[name] + insert.excluded[name] for name in _COUNTS}
        upsert = insert.on_conflict_do_update(index_elements=_KEY, set_=more)
        compiled = upsert.compile(dialect=self._db.engine.dialect, column_keys=_VALUES)
        assert isinstance(compiled, SQLCompiler)
        return compiled


class Usage:
    """Months of keys."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def month(self, at: datetime, *, keys: Collection[str] | None = None) -> Rows[KeyUsage]:
        """What keys, or some of them, used in the month of `at`, by key and model."""
        query = sa.select(key_usage).where(key_usage.c.month == month_name(at))
        if keys is not None:
            query = query.where(key_usage.c.api_key.in_(keys))
        with self._db.reading() as connection:
            rows = connection.execute(query.order_by(key_usage.c.api_key, key_usage.c.model)).mappings().all()
        return readable(KeyUsage, rows)

    def month_of_owners(self, at: datetime, owners: Collection[str]) -> list[tuple[str, KeyUsage]]:
        """What the keys of owners, revoked ones too, used in the month of `at`, each with the key's owner; what cannot
        be read is logged."""
        joined = key_usage.join(api_keys, api_keys.c.id == key_usage.c.api_key)
        query = sa.select(key_usage, api_keys.c.owner).select_from(joined)
        query = query.where(key_usage.c.month == month_name(at), api_keys.c.owner.in_(owners))
        with self._db.reading() as connection:
            rows = connection.execute(query).mappings().all()
        found: list[tuple[str, KeyUsage]] = []
        for row in rows:
            good = readable(KeyUsage, [row])
            self._db.tell(good.unreadable)
            found += [(row["owner"], used) for used in good]
        return found

    def page(self, month: str, ask: Ask, key: str | None = None) -> Page[KeyUsage]:
        """The same of a month by its name, page by page."""
        query = sa.select(key_usage).where(key_usage.c.month == month)
        if key is not None:
            query = query.where(key_usage.c.api_key == key)
        return page(self._db, KeyUsage, query, (key_usage.c.api_key, key_usage.c.model), ask, newest_first=False)
