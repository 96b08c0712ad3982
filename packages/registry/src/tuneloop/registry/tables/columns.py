"""What every table is made of: the metadata, the types that both databases keep alike, and the kinds of columns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect

metadata = sa.MetaData()


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC in, aware UTC out, on SQLite (which forgets the zone) as on PostgreSQL."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    @property
    def python_type(self) -> type[Any]:
        return datetime

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy's signature)
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy's signature)
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return _as_stored_if_damaged(super().result_processor(dialect, coltype))


class _Json(sa.types.TypeDecorator[Any]):
    """JSON in a column."""

    impl = sa.JSON().with_variant(JSONB(), "postgresql")
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return _as_stored_if_damaged(super().result_processor(dialect, coltype))


class Money(sa.types.TypeDecorator[Decimal]):
    """An exact amount: SQLite has no decimal numbers, so it is written out."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002 (SQLAlchemy's signature)
        try:
            return None if value is None else Decimal(value)
        except InvalidOperation:
            return value  # for its noun to refuse it by the row's name


def _as_stored_if_damaged(process: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """A value that cannot be read comes through as it stands, for its noun to refuse it by the row's name; an error
    here would take every other row of the query with it, and name none."""
    if process is None:
        return None

    def processed(value: Any) -> Any:
        try:
            return process(value)
        except (ValueError, TypeError, RecursionError):
            return value

    return processed


Json = _Json()


def id_column() -> sa.Column[str]:
    return sa.Column("id", sa.String(64), primary_key=True)


def time_column(name: str, *, nullable: bool = False, index: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, UtcDateTime(), nullable=nullable, index=index)


def text_column(name: str, *, nullable: bool = False, index: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable, index=index)


def integer_column(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=nullable)


def json_column(name: str) -> sa.Column[Any]:
    return sa.Column(name, Json, nullable=False)


def partial_index(name: str, *columns: str, where: str) -> sa.Index:
    """An index of those rows alone of which an expression holds, in SQL that both databases read alike."""
    condition = sa.text(where)
    return sa.Index(name, *columns, sqlite_where=condition, postgresql_where=condition)
