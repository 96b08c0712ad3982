"""What was used within the last minute, by seconds; pure.

A second leaves the window only when all of it is a minute old, so that no minute, wherever it begins, holds more than
was let in here. Costs at most 61 numbers, whatever is used.
"""

from __future__ import annotations

import math

WINDOW_S = 60
_GONE_S = WINDOW_S + 1


class Window:
    """A sliding minute; times are seconds of one clock that never goes back."""

    __slots__ = ("_slots", "_total")

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}  # second → amount, the oldest first
        self._total = 0

    def used(self, now_s: float) -> int:
        """The sum of the last minute."""
        slots, oldest = self._slots, math.floor(now_s) - _GONE_S
        while slots:
            second = next(iter(slots))
            if second > oldest:
                break
            self._total -= slots.pop(second)
        return self._total

    def since(self, now_s: float, seconds: int) -> int:
        """The sum of the last so many seconds, and of the one under way."""
        first = math.floor(now_s) - seconds
        return sum(amount for second, amount in self._slots.items() if second >= first)

    def add(self, now_s: float, amount: int) -> int:
        """Let an amount in; returns the second it stands under, for `settle`."""
        second = math.floor(now_s)
        self._slots[second] = self._slots.get(second, 0) + amount
        self._total += amount
        return second

    def settle(self, second: int, difference: int) -> None:
        """Correct what was let in at a second; what has left the window already is past."""
        if second in self._slots:
            self._slots[second] += difference
            self._total += difference

    def wait_s(self, now_s: float, room: int) -> float:
        """Seconds until at most `room` is used, if nothing more comes in; 0.0 where that is so already."""
        used = self.used(now_s)
        for second, amount in self._slots.items():
            if used <= room:
                break
            used -= amount
            if used <= room:
                return second + _GONE_S - now_s
        return 0.0

    def reset_s(self, now_s: float) -> float:
        """Seconds until nothing is used, if nothing more comes in."""
        self.used(now_s)
        return max(0.0, next(reversed(self._slots)) + _GONE_S - now_s) if self._slots else 0.0
