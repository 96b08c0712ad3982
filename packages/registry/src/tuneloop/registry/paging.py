"""Pages of a list that grows meanwhile: each begins where the one before it ended, by key and never by count.

The thousandth page costs what the first does, and what is added while somebody reads is neither skipped nor repeated.
A cursor is opaque to whoever holds it: the list's name and the keys of the last row seen.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from tuneloop.registry.database import Database, NounT, Rows, readable
from tuneloop.registry.errors import InvalidInput, Unreadable

MOST_PER_PAGE = 200
_MOST = 2**31 - 1  # what both databases' integers hold
T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """Which page is wanted: so many rows after a cursor, or from the beginning."""

    limit: int = 50
    cursor: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MOST_PER_PAGE:
            raise InvalidInput(f"limit {self.limit} is not between 1 and {MOST_PER_PAGE}")

    def after(self, name: str, *kinds: type) -> list[Any] | None:
        """The keys of the last row of the page before, of these kinds; None: this is the first page.

        Raises:
            InvalidInput: the cursor is none that this list gave.
        """
        if self.cursor is None:
            return None
        try:
            listed, *keys = json.loads(base64.b64decode(self.cursor, altchars=b"-_", validate=True))
            if listed != name or len(keys) != len(kinds):
                raise ValueError("another list's")
            return [_key(kind, key) for kind, key in zip(kinds, keys, strict=True)]
        except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
            raise InvalidInput(f"this cursor is none of {name}: give `next` of the page before as it was") from None


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page."""

    items: Sequence[T]
    next: str | None  # where the next page begins; None: this is the last
    unreadable: tuple[str, ...] = ()  # what is wrong with each row of this page that cannot be read


def cursor_at(name: str, keys: Sequence[Any]) -> str:
    """The cursor behind a row with these keys."""
    said = [name, *(key.isoformat() if isinstance(key, datetime) else key for key in keys)]
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode()


def page(
    database: Database,
    kind: type[NounT],
    query: sa.Select[Any],
    keys: Sequence[sa.Column[Any]],
    ask: Ask,
    *,
    newest_first: bool = True,
) -> Page[NounT]:
    """One page of a query, in the order of `keys`, of which the last tells every row from every other.

    Raises:
        InvalidInput: the cursor is none that this list gave.
        Unreadable: the page ends at a row whose keys are damaged, so that nothing can follow it.
    """
    name = str(keys[0].table)
    kinds = [key.type.python_type for key in keys]
    after = ask.after(name, *kinds)
    if after is not None:
        here, there = sa.tuple_(*keys), sa.tuple_(*(sa.literal(v, k.type) for v, k in zip(after, keys, strict=True)))
        query = query.where(here < there if newest_first else here > there)
    query = query.order_by(*(key.desc() if newest_first else key for key in keys)).limit(ask.limit + 1)
    with database.reading() as connection:
        rows = connection.execute(query).mappings().all()
    shown, more = rows[: ask.limit], len(rows) > ask.limit
    found: Rows[NounT] = readable(kind, shown)
    if not more:
        return Page(found, None, found.unreadable)
    last = [shown[-1][key.name] for key in keys]
    if not all(isinstance(value, k) for value, k in zip(last, kinds, strict=True)):
        raise Unreadable(f"the list of {name} cannot be read on from here: {'; '.join(found.unreadable)}")
    return Page(found, cursor_at(name, last), found.unreadable)


def _key(kind: type, key: Any) -> Any:
    if kind is datetime:
        at = datetime.fromisoformat(key)
        if at.tzinfo is None:
            raise ValueError("no time zone")
        return at.astimezone(UTC)
    if kind is int and (isinstance(key, bool) or not isinstance(key, int) or not 0 <= key <= _MOST):
        raise ValueError("no number")
    if kind is str and not (isinstance(key, str) and key.isprintable()):
        raise ValueError("no name")
    return key
