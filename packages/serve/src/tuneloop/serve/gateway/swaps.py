"""What becomes of adapters on engines, as one view of the registry after another shows it.

An engine that comes, or comes back, shows where its adapters stand, and no change; so does every one after a time in
which nothing was read. What happens between two views and is undone is not seen. The seconds of a load, from on its way
to ready (fetch, turn and first token included), are those between two views: each is right to within a reading of the
registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from tuneloop.registry.nouns import AdapterState, EngineState

Change = Literal["loaded", "failed", "unloaded"]
CHANGES: tuple[Change, ...] = get_args(Change)
_ABLE = {AdapterState.READY, AdapterState.DRAINING}


@dataclass(slots=True)
class _Engine:
    adapters: Mapping[str, AdapterState] | None = None  # as they stood last; None: it was not there
    began_s: dict[str, float] = field(default_factory=dict)  # adapter → when it was first seen on its way
    changes: dict[Change, int] = field(default_factory=lambda: dict.fromkeys(CHANGES, 0))
    load_s: float = 0.0

    def shows(self, adapters: Mapping[str, AdapterState], now_s: float) -> None:
        """Count what has changed since it was seen last."""
        before = adapters if self.adapters is None else self.adapters
        self.adapters = adapters
        for name, state in adapters.items():
            was = before.get(name)
            if state in _ABLE:
                if was not in _ABLE:
                    self.changes["loaded"] += 1
                    self.load_s += now_s - self.began_s.pop(name, now_s)
            elif state is AdapterState.FAILED:
                if was is not AdapterState.FAILED:
                    self.changes["failed"] += 1
                    self.began_s.pop(name, None)
            else:
                self.began_s.setdefault(name, now_s)
        for name in before.keys() - adapters.keys():
            self.began_s.pop(name, None)
            if before[name] in _ABLE:
                self.changes["unloaded"] += 1

    def left(self) -> None:
        """It is not there any more."""
        self.adapters = None
        self.began_s.clear()


class Swaps(Collector):
    """Counts what changes about the adapters of engines; the event loop alone writes here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._engines: dict[str, _Engine] = {}

    def applies(self, engines: Iterable[EngineState], kept: Collection[str], *, after_gap: bool = False) -> None:
        """Compare the live engines with what they were; forget those that are not `kept`. `after_gap` (a start, a
        registry that was away) where they stand is only noted. An engine of whole weights swaps nothing."""
        now_s = self._clock()
        live = {engine.id: engine.adapters for engine in engines if engine.max_loras}
        if after_gap:
            for one in self._engines.values():
                one.left()
        known = {name: self._engines.get(name) or _Engine() for name in kept}
        for name, engine in known.items():
            if name in live:
                engine.shows(live[name], now_s)
            else:
                engine.left()
        self._engines = known

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        changes = CounterMetricFamily(
            "tuneloop_adapter_changes",
            "adapters that an engine loaded, could not load, or unloaded, as its heartbeats show",
            labels=("engine", "change"),
        )
        seconds = SummaryMetricFamily(
            "tuneloop_adapter_load_seconds",
            "from an adapter's first heartbeat to the one that says ready, to within poll_s",
            labels=("engine",),
        )
        for name, engine in self._engines.items():
            for change, count in engine.changes.items():
                changes.add_metric((name, change), count)
            seconds.add_metric((name,), engine.changes["loaded"], engine.load_s)
        return changes, seconds
