"""The engines of one base load adapters one after another: a load stalls every stream of its engine, and while one
loads the others answer.

The turn is a lock in the registry, which ends with its holder. An engine that does not serve yet needs none.
Availability comes first: while the registry is away, and after `PATIENCE_S`, an engine loads without its turn and says
so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

from tuneloop.registry.database import Database
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.exclusive import alone

PATIENCE_S = 120.0  # as long as one load may take


class LoadTurn:
    """One engine's turns."""

    def __init__(
        self,
        database: Callable[[], Database],
        base_digest: str,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`database` raises `Unavailable` while the registry is away."""
        self._database = database
        self._what = f"load adapters of {base_digest}"
        self._say = say
        self._clock = clock
        self._waits_since: float | None = None

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[bool]:
        """Whether it may load now; nobody else who asks may until the block ends."""
        held = ExitStack()
        try:
            yield await asyncio.to_thread(self._take, held)
        finally:
            await asyncio.to_thread(held.close)

    def unasked(self) -> None:
        """There is nothing to load now: who asks again begins to wait anew."""
        self._waits_since = None

    def _take(self, held: ExitStack) -> bool:
        try:
            mine = held.enter_context(alone(self._database(), self._what))
        except (Unavailable, OSError) as error:  # OSError: the folder of locks beside an SQLite file
            self._say(f"loading without a turn, others may load too: {error}")
            mine = True
        if mine:
            self._waits_since = None
            return True
        now = self._clock()
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since < PATIENCE_S:
            return False
        self._waits_since = None
        self._say(f"loading without a turn: waited {PATIENCE_S:.0f} s for it")
        return True
