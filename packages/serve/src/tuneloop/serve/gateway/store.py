"""Into the database, or onto disk while it is away; and from disk into the database when it is back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import Noun
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.spool import Spool

log = logging.getLogger(__name__)
NounT = TypeVar("NounT", bound=Noun)
REPLAY_BATCH = 500


class Store(Generic[NounT]):
    """Keeps one kind of noun."""

    def __init__(
        self,
        link: Link,
        spool: Spool[NounT],
        insert: Callable[[Registry, Sequence[NounT]], None],
        spooled: Callable[[int], None],
    ) -> None:
        """`insert` must keep the first of two items with one id; `spooled` hears how many items went to disk."""
        self._link = link
        self._spool = spool
        self._insert_into = insert
        self._spooled = spooled
        self._may_have_files = True  # an earlier life may have left some

    def keep(self, items: Sequence[NounT]) -> list[NounT]:
        """Store items durably; returns those that the database refuses for what they hold.

        Raises:
            OSError: the database is away and the disk refuses too.
        """
        if not self._link.down:  # else not even try: a connection attempt may take seconds
            try:
                return self._insert(items)
            except Unavailable:
                pass
        self._spool.append(items)
        self._may_have_files = True
        self._spooled(len(items))
        return []

    def replay(self) -> None:
        """Bring what is on disk into the database, if it answers.

        Raises:
            Unavailable: it stopped answering on the way; the files stay.
        """
        if self._link.down or not self._may_have_files:
            return
        self._may_have_files = False
        try:
            for path in self._spool.waiting():
                items = list(self._spool.read(path))
                for start in range(0, len(items), REPLAY_BATCH):
                    self._insert(items[start : start + REPLAY_BATCH])
                path.unlink()
                log.info("%d items of %s are in the database now", len(items), path.name)
        except BaseException:
            self._may_have_files = True
            raise

    def close(self) -> None:
        """Close the spool."""
        self._spool.close()

    def _insert(self, items: Sequence[NounT]) -> list[NounT]:
        try:
            with self._link.registry() as registry:
                self._insert_into(registry, items)
        except SQLAlchemyError as error:
            if len(items) > 1:  # one of them is bad: find it, keep the others
                return [refused for item in items for refused in self._insert([item])]
            log.error("the database refuses an item: %s", error)
            return list(items)
        return []
