"""What each API key has used in a month, by model: counted with the records themselves, in the same transaction.

A record that is replayed is not stored twice and so is not counted twice; what was counted stays when records are
deleted. Tokens are kept, not money: the price is a setting of whoever asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.database import Database, Rows, readable
from tuneloop.registry.nouns import KeyUsage, RequestRecord
from tuneloop.registry.tables import key_usage

_COUNTS = ("requests", "prompt_tokens", "completion_tokens")


def month_name(at: datetime) -> str:
    """`2026-11`, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m}"


def book(database: Database, connection: Connection, records: Iterable[RequestRecord]) -> None:
    """Count records that have just been stored for the first time, in the transaction that stores them."""
    sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for record in records:
        if record.api_key is not None:
            counts = sums[month_name(record.at), record.api_key, record.model]
            counts[0] += 1
            counts[1] += record.prompt_tokens or 0
            counts[2] += record.completion_tokens or 0
    for (month, key, model), counts in sorted(sums.items()):  # in one order everywhere: nobody waits in a circle
        insert = database.insert(key_usage).values(
            month=month, api_key=key, model=model, **dict(zip(_COUNTS, counts, strict=True))
        )
        more = {name: key_usage.c[name] + insert.excluded[name] for name in _COUNTS}
        connection.execute(insert.on_conflict_do_update(index_elements=["month", "api_key", "model"], set_=more))


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
