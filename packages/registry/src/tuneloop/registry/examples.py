"""Users' questions that the monitor's windows and episodes show as examples, and taking them out again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import sqlalchemy as sa

from tuneloop.registry.database import Database
from tuneloop.registry.tables import BLANK, episodes, window_scores

_AT_ONCE = 100  # rows of a look; one holds up to some 100 kB
_SHOWN = ((window_scores, window_scores.c.detail), (episodes, episodes.c.evidence))


def blank_examples(
    database: Database,
    gone: Callable[[set[str]], Collection[str]],
    where: Callable[[sa.Table], sa.ColumnElement[bool]] = lambda _: sa.true(),
) -> Iterator[int]:
    """Have examples read `(deleted)`, a row in each transaction, as far as the results are asked for.

    Args:
        database: whose windows and episodes.
        gone: of requests that examples are of, by id, those whose questions go.
        where: which rows of either table are looked at.

    Yields:
        How many of each hundred windows or episodes showed one.
    """
    for table, column in _SHOWN:
        query, last = sa.select(table.c.id, column.label("shown")).where(where(table)), ""
        while True:
            with database.reading() as connection:
                rows = connection.execute(query.where(table.c.id > last).order_by(table.c.id).limit(_AT_ONCE)).all()
            if not rows:
                break
            last = rows[-1].id
            named = {row.id: set(_named(row.shown)) for row in rows}
            ids = gone({request_id for each in named.values() for request_id in each})
            yield sum(
                _blank_row(database, table, column, row_id, ids)
                for row_id, each in named.items()
                if not each.isdisjoint(ids)
            )


def _blank_row(database: Database, table: sa.Table, column: sa.Column[Any], row_id: str, ids: Collection[str]) -> bool:
    """Blank what a row shows now; whether it is there still."""
    with database.writing() as connection:
        newest = connection.execute(sa.select(column).where(table.c.id == row_id).with_for_update()).first()
        if newest is not None:
            changed = {column.name: _blanked(newest[0], ids)}
            connection.execute(sa.update(table).where(table.c.id == row_id).values(**changed))
        return newest is not None


def _is_example(shown: dict[str, Any]) -> bool:
    return isinstance(shown.get("request_id"), str) and "question" in shown


def _named(shown: Any) -> Iterator[str]:
    """The requests whose questions are shown."""
    if isinstance(shown, dict):
        if _is_example(shown) and shown["question"] != BLANK:
            yield shown["request_id"]
        shown = list(shown.values())
    if isinstance(shown, list):
        for one in shown:
            yield from _named(one)


def _blanked(shown: Any, ids: Collection[str]) -> Any:
    if isinstance(shown, list):
        return [_blanked(one, ids) for one in shown]
    if not isinstance(shown, dict):
        return shown
    found = {name: _blanked(one, ids) for name, one in shown.items()}
    return found | {"question": BLANK} if _is_example(found) and found["request_id"] in ids else found
