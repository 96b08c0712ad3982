"""What all API keys of one owner may take together, whatever each of them may take by itself.

An owner is no more than the name that keys were made for: it may have limits before it has keys. Gateways learn them
with the keys, and share them out among each other as those of a key.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from hashlib import sha256

import sqlalchemy as sa
from pydantic import AwareDatetime, Field

from tuneloop.registry import audit
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.database import Database, Rows, noun_of, readable
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Noun, kept
from tuneloop.registry.paging import Ask, Page, page
from tuneloop.registry.tables import owner_limits

MOST_LETTERS = 200


def owner_name(said: str) -> str:
    """A name that keys can be made for and limits be given to: blanks around it are none of it.

    Raises:
        InvalidInput: it is none.
    """
    name = said.strip()
    if not name or len(name) > MOST_LETTERS or "\0" in name:
        raise InvalidInput(f"an owner's name has 1 to {MOST_LETTERS} letters: `tuneloop key list` shows the owners")
    return name


class OwnerLimits(Noun):
    """What the keys of an owner may take together."""

    name: str = Field(min_length=1, max_length=MOST_LETTERS)  # the owner
    limits: KeyLimits
    changed_at: AwareDatetime


def owner_id(owner: str) -> str:
    """What an owner's use is counted by, beside the ids of keys."""
    return f"owner_{sha256(owner.encode()).hexdigest()[:24]}"


class Owners:
    """Limiting owners, and showing their limits."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._db = database
        self._clock = clock

    def limit(
        self, owner: str, change: Callable[[KeyLimits], KeyLimits], *, by: str, reason: str | None = None
    ) -> OwnerLimits:
        """Give an owner the limits that `change` makes of those it has; gateways follow within 2 s.

        Raises:
            InvalidInput: the name is none, or a priority is given: whose turn it is is said of each key.
        """
        owner = owner_name(owner)
        now, here = self._clock(), owner_limits.c.name == owner
        with self._db.writing() as connection:
            row = connection.execute(sa.select(owner_limits).where(here).with_for_update()).mappings().first()
            before = KeyLimits() if row is None else noun_of(OwnerLimits, row).limits
            limits = change(before)
            if limits.priority != "normal":
                raise InvalidInput("an owner has no priority: give it to its keys, `tuneloop key limit KEY --priority`")
            changed = {"limits": kept(limits), "changed_at": now}
            insert = self._db.insert(owner_limits).values(name=owner, **changed)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=changed))
            detail = {"limits": _given(limits), "before": _given(before)} | ({"reason": reason} if reason else {})
            audit.record(connection, at=now, actor=by, action="owner.limit", subject=f"owner:{owner}", detail=detail)
        return OwnerLimits(name=owner, limits=limits, changed_at=now)

    def all(self) -> Rows[OwnerLimits]:
        """Owners that have, or had, limits, by name."""
        with self._db.reading() as connection:
            rows = connection.execute(sa.select(owner_limits).order_by(owner_limits.c.name)).mappings().all()
        return readable(OwnerLimits, rows)

    def page(self, ask: Ask) -> Page[OwnerLimits]:
        """The same, page by page."""
        return page(self._db, OwnerLimits, sa.select(owner_limits), (owner_limits.c.name,), ask, newest_first=False)


def _given(limits: KeyLimits) -> dict[str, object]:
    return limits.model_dump(mode="json", exclude_defaults=True)
