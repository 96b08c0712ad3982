"""Into the database, or onto disk while it is away; and from disk into the database when it is back.

Whatever the database answers, an item that was taken is in it, in the spool, or set aside beside the spool and counted;
or it is of what was deleted with its user, and the log says how many are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import Noun
from tuneloop.serve.gateway.link import Link, cause_of
from tuneloop.serve.gateway.spool import Spool, line_of

log = logging.getLogger(__name__)
NounT = TypeVar("NounT", bound=Noun)
REPLAY_BATCH = 500
REPLAY_AGAIN_AFTER_S = 2.0  # when the last one did not get through


class Kept(Generic[NounT]):
    """What became of items: all but these are durable."""

    def __init__(self, refused: Sequence[NounT] = (), unwanted: Collection[str] = ()) -> None:
        self.refused = list(refused)  # by the database, for what they hold
        self.unwanted = unwanted  # ids of what the registry no longer has a place for


class Store(Generic[NounT]):
    """Keeps one kind of noun."""

    def __init__(
        self,
        link: Link,
        spool: Spool[NounT],
        insert: Callable[[Registry, Sequence[NounT]], Collection[str] | None],
        *,
        spooled: Callable[[int], None],
        aside: Callable[[int], None],
    ) -> None:
        """`insert` must keep the first of two items with one id, and may return the ids of those that are not wanted;
        `spooled` and `aside` hear how many went there."""
        self._link = link
        self._spool = spool
        self._insert_into = insert
        self._spooled = spooled
        self._aside = aside
        self._may_have_files = True  # an earlier life may have left some
        self._replay_at = 0.0
        self._tried_aside = False

    @property
    def has_files(self) -> bool:
        """Whether something may be on disk that is not in the database yet."""
        return self._may_have_files

    def keep(self, items: Sequence[NounT]) -> Kept[NounT]:
        """Store items durably.

        Raises:
            OSError: the database cannot be used and the disk refuses too.
        """
        if not self._link.down:  # else not even try: a connection attempt may take seconds
            try:
                return self._insert(items)
            except Unavailable:  # the link has logged it
                pass
            except Exception:
                log.exception("storing failed for a reason nobody foresaw; onto the disk instead")
        self._spool.append(items)
        self._may_have_files = True
        self._spooled(len(items))
        return Kept()

    def replay(self) -> None:
        """Bring what is on disk into the database, if it answers; what it cannot take is set aside.

        Raises:
            Unavailable: it stopped answering on the way; the files stay.
        """
        if self._link.down or not self._may_have_files or time.monotonic() < self._replay_at:
            return
        self._may_have_files = False
        whole = False
        try:
            if not self._tried_aside:
                self._spool.try_aside_again()
                self._tried_aside = True
            stuck = [path for path in self._spool.waiting() if not self._replayed(path)]
            whole = not stuck
        finally:
            if not whole:
                self._may_have_files = True
                self._replay_at = time.monotonic() + REPLAY_AGAIN_AFTER_S

    def close(self) -> None:
        """Close the spool."""
        self._spool.close()

    def _replayed(self, path: Path) -> bool:
        """Bring one file in; False when the disk does not let it, and the file stays."""
        try:
            found = list(self._spool.read(path))
            items = [item for item in found if not isinstance(item, bytes)]
            lines = [line for line in found if isinstance(line, bytes)]
            left_out = 0
            for start in range(0, len(items), REPLAY_BATCH):
                kept = self._brought_in(items[start : start + REPLAY_BATCH])
                lines += map(line_of, kept.refused)
                left_out += len(kept.unwanted)
            if lines:
                self._spool.set_aside(lines)
                self._aside(len(lines))
                log.error("%d lines of %s cannot be stored and are set aside", len(lines), path)
            path.unlink()
        except Unavailable:  # an OSError too, but not of the disk
            raise
        except OSError as error:
            log.error("%s cannot be replayed and stays: %s", path, error)
            return False
        log.info("%d items of %s are in the database now", len(found) - len(lines) - left_out, path.name)
        if left_out:
            log.info("%d items of %s are left out: deleted with their users", left_out, path.name)
        return True

    def _brought_in(self, items: Sequence[NounT]) -> Kept[NounT]:
        """Store items; those that cannot be are refused, for whatever reason but the database being away.

        Raises:
            Unavailable: it is away.
        """
        try:
            return self._insert(items)
        except Unavailable:
            raise
        except Exception as error:
            if len(items) > 1:
                return _together([self._brought_in([item]) for item in items])
            log.exception("an item cannot be stored: %s", cause_of(error))
            return Kept(items)

    def _insert(self, items: Sequence[NounT]) -> Kept[NounT]:
        try:
            with self._link.registry() as registry:
                return Kept(unwanted=self._insert_into(registry, items) or ())
        except SQLAlchemyError as error:
            if len(items) > 1:  # one of them is bad: find it, keep the others
                return _together([self._insert([item]) for item in items])
            log.error("the database refuses an item: %s", cause_of(error))
            return Kept(items)


def _together(each: Sequence[Kept[NounT]]) -> Kept[NounT]:
    refused = [item for kept in each for item in kept.refused]
    return Kept(refused, {one for kept in each for one in kept.unwanted})
