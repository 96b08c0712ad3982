"""How many requests are at the engines at once, and the queue of those that wait for that; touched by the loop alone.

A request that would wait longer than the deadline is refused at once, with the time after which it may be worth trying
again; one that leaves while it waits leaves the queue. While there is room nobody waits, and a turn costs a count.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Literal

from tuneloop.registry.access.limits import Priority
from tuneloop.serve.gateway.admission.fair_queue import FairQueue
from tuneloop.serve.gateway.errors import ApiError

Shed = Literal["queue_full", "wait_too_long", "deadline"]
_REMEMBERED = 50  # requests that the mean time of one is made of


class Turns:
    """Gives turns; `began` of `enter` and `wait` is what `leave` is given back."""

    def __init__(
        self,
        most_at_once: int,
        most_waiting: int,
        deadline_s: float,
        shed: Callable[[Shed], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_at_once = most_at_once
        self._most_waiting = most_waiting
        self._deadline_s = deadline_s
        self._shed = shed
        self._clock = clock
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self._at_once = 0
        self._mean_s = 0.0
        self._ended = 0

    @property
    def at_once(self) -> int:
        """Requests that have their turn."""
        return self._at_once

    @property
    def waiting(self) -> int:
        """Requests that wait for it."""
        return len(self._queue)

    def enter(self) -> float | None:
        """Take a turn if one is free and nobody waits: when it began; otherwise None."""
        if self._at_once >= self._most_at_once or self._queue:
            return None
        self._at_once += 1
        return self._clock()

    async def wait(self, key: str, priority: Priority, cost: float) -> float:
        """Wait for a turn: when it began.

        Raises:
            ApiError: 503, too many wait, or it takes too long.
        """
        expected_s = self.expected_s(key, priority)
        if len(self._queue) >= self._most_waiting:
            raise self._overloaded("queue_full", expected_s)
        if expected_s > self._deadline_s:
            raise self._overloaded("wait_too_long", expected_s)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = self._queue.push(key, priority, cost, turn)
        try:
            async with asyncio.timeout(self._deadline_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it had just been given
                self._at_once -= 1
                self._next()
            self._queue.discard(ticket)
            if isinstance(error, TimeoutError):
                raise self._overloaded("deadline", self.expected_s(key, priority)) from None
            raise
        return self._clock()

    def leave(self, began: float) -> None:
        """Give a turn back."""
        self._at_once -= 1
        self._ended += 1
        self._mean_s += (self._clock() - began - self._mean_s) / min(self._ended, _REMEMBERED)
        if self._queue:
            self._next()

    def expected_s(self, key: str, priority: Priority) -> float:
        """How long a request that came now would wait, as long as requests take what they took lately."""
        return (self._queue.ahead_of(key, priority) + 1.0) * self._mean_s / self._most_at_once

    def _next(self) -> None:
        while self._at_once < self._most_at_once and (ticket := self._queue.pop()) is not None:
            if not ticket.item.done():  # else it is about to leave
                self._at_once += 1
                ticket.item.set_result(None)

    def _overloaded(self, why: Shed, expected_s: float) -> ApiError:
        self._shed(why)
        after_s = max(1, math.ceil(expected_s))
        message = f"more requests wait than can be answered in time; try again in {after_s} s"
        return ApiError(503, message, code="overloaded", retry_after_s=after_s)
