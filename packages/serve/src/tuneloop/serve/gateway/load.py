"""What one gateway knows of the load it makes: requests in flight, engines to pass over, retries it may still spend.

Touched by the event loop alone; other threads get copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tuneloop.serve.gateway.breaker import Breaker
from tuneloop.serve.gateway.snapshot import Target

SET_ASIDE_S = 2.0  # after a first failure
BUSY_S = 0.5  # after an engine first said that it has no room
RETRY_BURST = 10.0


class Load:
    """Requests in flight, by slot and by engine, and what failed lately.

    What fails at once has nothing in flight, and would else draw every request as the least loaded. An engine that is
    gone, to which no connection can be made or which hangs, is set aside: before it another version is taken. One that
    fails to answer, breaks off, or has no room, is shunned for that version alone and only while others have the same
    version: a version that fails wherever it is must be seen to fail.

    A shadow's copies are in flight on a slot, which an engine must not unload meanwhile, and count for no engine: what
    steers requests is requests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots: dict[str, int] = {}
        self._engines: dict[str, list[int]] = {}  # requests and tokens
        self._began: set[str] = set()  # engines, since it was asked last which are quiet
        self.hung: set[str] = set()  # engines that answer nothing: set aside until they do
        self._gone = Breaker(clock)  # by engine
        self._failing = Breaker(clock)  # by slot
        self._busy = Breaker(clock)  # by slot

    def carry(self, target: Target, tokens: int = 0) -> None:
        """Count one request more, of about so many tokens; `put_down` with the same must follow."""
        self.carry_copy(target)
        under_way = self._engines.get(target.engine)
        if under_way is None:
            self._engines[target.engine] = [1, tokens]
        else:
            under_way[0] += 1
            under_way[1] += tokens
        if self._gone.paused or self._failing.paused or self._busy.paused:
            self._gone.trying(target.engine)
            self._failing.trying(target.slot)
            self._busy.trying(target.slot)

    def put_down(self, target: Target, tokens: int = 0) -> None:
        """One request has ended."""
        self.put_down_copy(target)
        under_way = self._engines[target.engine]
        if under_way[0] > 1:
            under_way[0] -= 1
            under_way[1] -= tokens
        else:
            del self._engines[target.engine]

    def carry_copy(self, target: Target) -> None:
        """Count one copy more; `put_down_copy` must follow."""
        self._slots[target.slot] = self._slots.get(target.slot, 0) + 1

    def put_down_copy(self, target: Target) -> None:
        """One copy has ended."""
        if self._slots[target.slot] > 1:
            self._slots[target.slot] -= 1
        else:
            del self._slots[target.slot]

    def of(self, engine: str) -> int:
        """Requests in flight on an engine, copies apart."""
        under_way = self._engines.get(engine)
        return under_way[0] if under_way is not None else 0

    def tokens(self, engine: str) -> int:
        """About how many tokens the requests in flight on an engine take, prompts and answers, copies apart."""
        under_way = self._engines.get(engine)
        return under_way[1] if under_way is not None else 0

    def in_flight(self) -> dict[str, int]:
        """Slot → requests and copies, as the heartbeat reports them."""
        return dict(self._slots)

    def set_aside(self, engine: str) -> None:
        """It is gone."""
        self._gone.failed(engine, SET_ASIDE_S)

    def shun(self, slot: str, *, busy: bool) -> None:
        """It failed to answer, or is busy: not broken, but not the least loaded either."""
        if busy:
            self._busy.failed(slot, BUSY_S)
        else:
            self._failing.failed(slot, SET_ASIDE_S)

    def begun(self, target: Target) -> None:
        """It has begun to answer: it is there, and has room; whether it gets to the end is not known yet."""
        self._began.add(target.engine)
        if self._gone.paused or self._busy.paused:
            self._gone.succeeded(target.engine)
            self._busy.succeeded(target.slot)

    def answered(self, target: Target) -> None:
        """It has answered to the end."""
        self.begun(target)
        if self._failing.paused:
            self._failing.succeeded(target.slot)

    def aside(self) -> frozenset[str]:
        """The engines set aside now."""
        return self._gone.now() | self.hung if self.hung else self._gone.now()

    def quiet(self) -> set[str]:
        """Engines with requests under way that have begun no answer since this was called last."""
        quiet = self._engines.keys() - self._began
        self._began.clear()
        return quiet

    def shunned(self) -> frozenset[str]:
        """The slots to pass over now where others have the same version."""
        return self._failing.now() | self._busy.now()


class RetryBudget:
    """Lets `share` of all requests, plus `RETRY_BURST`, be tried again: a dying fleet gets no double load."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._left = RETRY_BURST if share else 0.0

    def earn(self) -> None:
        """A request came."""
        self._left = min(RETRY_BURST, self._left + self._share)

    def spend(self) -> bool:
        """Whether one more retry may be made; if so it is paid for."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
