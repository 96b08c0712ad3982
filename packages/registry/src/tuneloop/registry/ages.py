"""How long ago others were heard of, as far as this process has seen it: by a clock that nobody sets.

Who writes stamps a row with its machine's time, and who reads compares it with its own; a clock that is set would make
the living dead, or the dead live on. So the stamps are compared with the reader's clock only at the first look at a
row; after that what counts is whether the stamp has changed since the look before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

NameT = TypeVar("NameT", bound=Hashable)
FORGOTTEN_AFTER_S = 3_600.0  # a row that is not looked at any more


@dataclass(slots=True)
class _Known:
    at: datetime
    heard_s: float  # on the steady clock
    looked_s: float


class Ages:
    """What one process has seen of the stamps of others; safe to share between threads."""

    def __init__(self, steady: Callable[[], float]) -> None:
        """`steady` gives seconds, and is set by nobody."""
        self._steady = steady
        self._known: dict[Hashable, _Known] = {}
        self._lock = threading.Lock()

    def seen(self, stamps: Mapping[NameT, datetime], now: datetime) -> dict[NameT, float]:
        """Seconds since each was heard of; `now` is what this machine's clock shows."""
        with self._lock:
            steady_s = self._steady()
            if any(steady_s - known.looked_s > FORGOTTEN_AFTER_S for known in self._known.values()):
                self._known = {
                    name: known for name, known in self._known.items() if steady_s - known.looked_s <= FORGOTTEN_AFTER_S
                }
            return {name: self._seen(name, at, now, steady_s) for name, at in stamps.items()}

    def _seen(self, name: Hashable, at: datetime, now: datetime, steady_s: float) -> float:
        known = self._known.get(name)
        stated_s = max(0.0, (now - at).total_seconds())
        if known is None:
            known = self._known[name] = _Known(at, steady_s - stated_s, steady_s)
        elif known.at != at:  # since the look before, whatever the clocks say
            known.at, known.heard_s = at, steady_s - min(stated_s, steady_s - known.looked_s)
        known.looked_s = steady_s
        return steady_s - known.heard_s
