"""Many rows into one table, by a statement that is made once.

SQLAlchemy makes an INSERT with ON CONFLICT anew for every batch and goes over every row three times, which was a fifth
of what storing a record costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tuneloop.registry.database import Database
from tuneloop.registry.nouns import Noun
from tuneloop.registry.tables import Json

_EMPTY: dict[type, str] = {tuple: "[]", dict: "{}"}  # what most JSON columns of a record hold


class Inserting:
    """Inserts nouns of one kind whose `id` is new; each has a field for every column of the table."""

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._db = database
        self._names = [column.name for column in table.columns]
        self._fields_of = itemgetter(*self._names)
        self._table = table

    def insert(self, connection: Connection, nouns: Sequence[Noun]) -> int:
        """Store nouns; how many of them were new."""
        return connection.exec_driver_sql(self._statement, [self._values(noun) for noun in nouns]).rowcount

    @cached_property
    def _statement(self) -> str:
        insert = self._db.insert(self._table).on_conflict_do_nothing(index_elements=["id"])
        return str(insert.compile(dialect=self._db.engine.dialect, column_keys=self._names))

    @cached_property
    def _processors(self) -> list[tuple[int, bool, Any]]:
        """The place of each column whose values the driver is given in another form, whether that is JSON, and what
        makes it. SQLAlchemy would also make numbers numbers, which a noun's are."""
        dialect = self._db.engine.dialect
        made = [
            (place, column.type is Json, column.type.dialect_impl(dialect).bind_processor(dialect))
            for place, column in enumerate(self._table.columns)
            if not isinstance(column.type, sa.Float | sa.Boolean)
        ]
        return [one for one in made if one[2] is not None]

    def _values(self, noun: Noun) -> tuple[Any, ...]:
        values = list(self._fields_of(noun.__dict__))
        for place, is_json, process in self._processors:
            value = values[place]
            if not is_json:
                values[place] = process(value)
            elif (empty := _EMPTY.get(type(value))) is not None and not value:
                values[place] = empty
            else:
                name = self._names[place]
                values[place] = process(noun.model_dump(mode="json", include={name})[name])
        return tuple(values)
