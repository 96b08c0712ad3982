"""How often somebody may ask: a token bucket for each name, in memory, on a clock that is given.

A full bucket is the same as none, so full ones are thrown away: memory is bounded by who asked lately, and at last by
a number of buckets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

MOST_BUCKETS = 10_000


@dataclass
class _Bucket:
    left: float
    at_s: float


class Buckets:
    """Buckets that hold `burst` and are refilled by `rate_per_s`; safe to share between threads."""

    def __init__(self, rate_per_s: float, burst: float, clock: Callable[[], float], most: int = MOST_BUCKETS) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._most = most
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Take one from a name's bucket: 0.0 when it was there, otherwise the seconds until it will be."""
        with self._lock:
            now_s = self._clock()
            bucket = self._buckets.get(name)
            if bucket is None:
                if len(self._buckets) >= self._most:
                    self._sweep(now_s)
                bucket = self._buckets[name] = _Bucket(self._burst, now_s)
            bucket.left, bucket.at_s = self._filled(bucket, now_s), now_s
            if bucket.left < 1.0:
                return (1.0 - bucket.left) / self._rate_per_s
            bucket.left -= 1.0
            return 0.0

    def __len__(self) -> int:
        return len(self._buckets)

    def _filled(self, bucket: _Bucket, now_s: float) -> float:
        return min(self._burst, bucket.left + (now_s - bucket.at_s) * self._rate_per_s)

    def _sweep(self, now_s: float) -> None:
        self._buckets = {n: b for n, b in self._buckets.items() if self._filled(b, now_s) < self._burst}
        while len(self._buckets) >= self._most:  # nobody is full: whoever asked first of all is forgotten
            del self._buckets[next(iter(self._buckets))]
