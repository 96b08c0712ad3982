"""What failed lately, and how long others are preferred to it: a breaker that only looks at what requests meet.

The pause doubles with each failure that follows and ends with a success. Once it is over one request tries, and until
it has succeeded, or a pause has gone by, the others still go elsewhere. While nothing has failed it costs a request
nothing. Who asks decides what to do when all is paused: a breaker never refuses.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

LONGEST_PAUSE_S = 15.0
FORGOTTEN_AFTER_S = 60.0  # engines leave, and nobody asks them again


class _Pause(msgspec.Struct):
    pause_s: float
    until: float
    tried: bool = False  # since it was over the last time


class Breaker:
    """Keeps the pauses, by name; touched by the event loop alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.paused: dict[str, _Pause] = {}  # until a success; empty as a rule, which is all that most requests look at

    def failed(self, name: str, first_s: float) -> None:
        """Pause it, for `first_s` the first time.

        Requests that were under way together fail together: what fails during a pause, and was no trial, is no more
        than what was known.
        """
        now, pause = self._clock(), self.paused.get(name)
        if pause is None:
            self.paused[name] = _Pause(first_s, now + first_s)
        elif pause.tried or now >= pause.until:
            pause.pause_s = min(2.0 * pause.pause_s, LONGEST_PAUSE_S)
            pause.until, pause.tried = now + pause.pause_s, False

    def trying(self, name: str) -> None:
        """A request goes there; if the pause is over it is the one that tries."""
        pause = self.paused.get(name)
        if pause is not None and (now := self._clock()) >= pause.until:
            pause.until, pause.tried = now + pause.pause_s, True

    def succeeded(self, name: str) -> None:
        """It answers again."""
        self.paused.pop(name, None)

    def now(self) -> frozenset[str]:
        """What is paused now."""
        if not self.paused:
            return frozenset()
        now = self._clock()
        found = frozenset(name for name, pause in self.paused.items() if pause.until > now)
        if len(found) < len(self.paused):
            self.paused = {n: pause for n, pause in self.paused.items() if now - pause.until < FORGOTTEN_AFTER_S}
        return found
