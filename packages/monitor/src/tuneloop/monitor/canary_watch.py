"""The watch over what engines really serve: canaries of every version in a route, read when traffic has earned it.

A baseline is frozen when the version is first found serving, as the score of index 0 of its stream (`canary_baseline`);
every check is a score after it, so that a monitor killed anywhere goes on where it stopped. Checks keep the model's
false-alarm budget: each is tested at the level that the records answered since the last one have earned,
records / mean_run_length · the stream's share, split over the engines that serve. Without traffic nobody is served
anything, and nothing is read. A check stays in the pass, before its windows: it costs a reading, and what a changed
model does to the traffic must not be taken for a drift of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any

import numpy as np

from tuneloop.monitor.canaries import FRESH_ROUNDS, SPLITS, Baseline, changed_test, looks_moved, quiet
from tuneloop.monitor.canary_episodes import StreamEpisodes
from tuneloop.monitor.canary_stream import CanaryStream
from tuneloop.monitor.clocks import SetRight
from tuneloop.monitor.detectors import Outcome, window_alpha
from tuneloop.monitor.signals import SERVED_MODEL_CHANGE, budget_share
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import EngineState, Route, WindowScore, version_name

log = logging.getLogger("tuneloop.monitor")


class CanaryWatch:
    """Holds what serves against the baselines and keeps the episodes of what that tells."""

    def __init__(self, stream: CanaryStream) -> None:
        self._stream, self._episodes = stream, StreamEpisodes(stream)
        self._registry, self._settings = stream.registry, stream.settings
        self._share = budget_share(SERVED_MODEL_CHANGE, stream.settings)
        self._set_right = SetRight(stream.registry.clock)

    def watch(self, route: Route) -> None:
        """Check every version of the route that is due; end the episodes of those that left it.

        Raises:
            Unavailable: the database does not answer.
            Stopped: told to end while an engine was reading; nothing is concluded from that round.
        """
        for episode in self._episodes.open(route.model):
            if episode.version not in route.split:
                note = f"{version_name(route.model, episode.version)} left the route with revision {route.revision}"
                self._episodes.end(episode, note)
        for arm in route.arms:
            self._watch_version(route.model, arm.version)

    def _watch_version(self, model: str, version: int) -> None:
        newest = self._stream.newest(model, version)
        self._episodes.take_up(newest)
        if newest is None or self._stream.wants_baseline(newest):  # `Baselines` is about to freeze it
            return
        newest = self._set_right(newest)
        if self._registry.clock() < newest.window_end + timedelta(seconds=self._settings.canary_every_s):
            return
        engines = self._registry.fleet.serving(version_name(model, version))
        among, gamma = max(len(engines), 1), self._settings.mean_run_length
        needed = math.ceil(among * gamma / (SPLITS * self._share)) + 1  # records that earn the level of one check
        answered = self._registry.traffic.window(
            model, since=newest.window_end, version=version, oldest=max(self._settings.window, needed)
        )
        alpha = window_alpha(len(answered), gamma, 1) * self._share
        if alpha / among * SPLITS < 1:  # no reading could alarm at that level: traffic must earn more first
            return
        score = self._check(newest, engines, len(answered), alpha)
        if score.verdict == "drift":
            self._episodes.raised(score)
        self._episodes.end_quiet(model, version)

    def _check(self, newest: WindowScore, engines: Sequence[EngineState], n: int, alpha: float) -> WindowScore:
        model, version, name = newest.model, newest.version, version_name(newest.model, newest.version)
        frozen = self._stream.baseline_of(newest)
        found: dict[str, Outcome] = {}
        unread = "" if engines else f"no live engine serves {name}; `tuneloop status` shows the engines"
        for engine in engines:
            try:
                found[engine.id] = self._look(_baseline(frozen, engine), engine, name, alpha / len(engines))
            except Unavailable as error:
                unread = str(error)
        detail: dict[str, Any] = {
            "unit": "nats per token of the canaries",
            "alpha": alpha,
            "noise": frozen.detail["noise"],
            "engines": {
                key: {"statistic": o.statistic, "p_value": o.p_value, "alarm": o.alarm} for key, o in found.items()
            },
            "baseline": frozen.id,
            "reference": _reference(frozen),
        }
        if unread:
            detail["reason"] = unread
        worst = min(found.values(), key=lambda o: (o.p_value, -o.statistic), default=None)
        passed = "not enough data" if unread else "none"  # an engine that could not be read is never a pass
        verdict = "drift" if worst is not None and worst.alarm else passed
        start = newest.window_end
        return self._stream.store(model, version, newest, (verdict, worst, detail), n=n, start=start)

    def _look(self, baseline: Baseline, engine: EngineState, name: str, alpha: float) -> Outcome:
        seen = self._stream.read(engine, name)
        if not looks_moved(baseline, seen):
            return quiet(baseline, seen, alpha)
        return changed_test(baseline, [self._stream.read(engine, name) for _ in range(FRESH_ROUNDS)], alpha)


def _baseline(frozen: WindowScore, engine: EngineState) -> Baseline:
    """An engine's own, else the common one."""
    by_engine = frozen.detail.get("by_engine", {})  # baselines frozen by earlier releases have none
    return Baseline(np.array(by_engine.get(engine.id, frozen.detail["rounds"])))


def _reference(frozen: WindowScore) -> dict[str, object]:
    return {
        "digest": sha256(repr(frozen.detail["rounds"]).encode()).hexdigest(),
        "n": len(frozen.detail["rounds"]),
        "what": "readings of the canaries",
        "from": frozen.window_start.isoformat(),
        "to": frozen.window_end.isoformat(),
    }
