"""The baselines of canaries: what a version reads when it is first found serving, frozen beside the monitor's passes.

Twelve rounds keep an engine busy for most of a minute, longer under load, and no window may wait for that: so this is a
loop of its own, in a thread of its own. Nothing is kept but the whole baseline, in one score: killed in between, the
next monitor reads anew, and of two that read at once the first one's stands.

The first baseline is one engine's, and every engine is held against it. What serves by intent (an int8 copy on purpose,
a machine of another kind) is accepted by resolving the episode: a new baseline is frozen then, engine by engine, and an
engine that comes later is held against the first one's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from tuneloop.monitor.canaries import BASELINE_ROUNDS, Baseline
from tuneloop.monitor.canary_stream import CanaryStream, texts_digest
from tuneloop.monitor.detectors import Outcome
from tuneloop.monitor.scorer import Stopped
from tuneloop.registry.errors import TuneloopError, Unavailable
from tuneloop.registry.nouns import EngineState, WindowScore, version_name

log = logging.getLogger("tuneloop.monitor")


class Baselines:
    """Freezes the baseline of every routed version that wants one."""

    def __init__(self, stream: CanaryStream) -> None:
        self._stream = stream

    def run(self, wait: Callable[[float], object]) -> None:
        """Round after round until `stopping`; nothing that goes wrong ends it."""
        every_s = self._stream.settings.every_s
        while not self._stream.stopping():
            try:
                self.round()
            except Stopped:
                return
            except TuneloopError as error:
                log.warning("baselines of canaries, trying again in %.0f s: %s", every_s, error)
            except Exception:  # without baselines no check is made: whatever this was, it is tried again
                log.exception("baselines of canaries, trying again in %.0f s", every_s)
            wait(every_s)

    def round(self) -> None:
        """Look at every version of every route once.

        Raises:
            Unavailable: the database does not answer.
            Stopped: told to end while an engine was reading; nothing is kept of that baseline.
        """
        registry = self._stream.registry
        for model, route in registry.routes.current_all().items():  # the pass tells of those that cannot be read
            for arm in route.arms:
                newest = self._stream.newest(model, arm.version)
                engines = registry.fleet.serving(version_name(model, arm.version))
                if engines and self._stream.wants_baseline(newest):
                    self._freeze(model, arm.version, engines[:1] if newest is None else engines, newest)

    def _freeze(self, model: str, version: int, engines: Sequence[EngineState], newest: WindowScore | None) -> None:
        """The baseline of those of the engines that can be read, and read the same tokens each time."""
        name, began = version_name(model, version), self._stream.registry.clock()
        frozen: dict[str, Baseline] = {}
        for engine in engines:
            try:
                rounds = [self._stream.read(engine, name) for _ in range(BASELINE_ROUNDS)]
            except Unavailable as error:
                log.warning("no baseline of %s's canaries yet: %s", name, error)
                continue
            if len({row.shape for row in rounds}) > 1:
                log.warning(
                    "no baseline of %s's canaries: %s cuts them into tokens differently each time", name, engine.id
                )
                continue
            frozen[engine.id] = Baseline(np.stack(rounds))
        if not frozen:
            return
        listed = {
            key: [[round(float(value), 5) for value in row] for row in baseline.rounds]
            for key, baseline in frozen.items()
        }
        first = next(iter(frozen))
        detail = {
            "rounds": listed[first],  # what an engine that is not among them is held against
            "by_engine": listed,
            "engine": first,
            "noise": max(baseline.noise for baseline in frozen.values()),
            "canaries": texts_digest(),
        }
        quiet_one = Outcome(0.0, frozen[first].floor(), 1.0, 0.0, 0)
        self._stream.store(model, version, newest, ("none", quiet_one, detail), n=BASELINE_ROUNDS, start=began)
