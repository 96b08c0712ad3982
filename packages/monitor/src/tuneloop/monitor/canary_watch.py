"""The watch over what engines really serve: canaries of every version in a route, read when traffic has earned it.

The baseline is frozen when the version is first found serving, as the score of index 0 of its stream; every check is
a score after it, so that a monitor killed anywhere goes on where it stopped and two of them freeze one baseline.
Checks keep the model's false-alarm budget: each is tested at the level that the records answered since the last one
have earned, records / mean_run_length · the stream's share, split over the engines that serve. Without traffic
nobody is served anything, and nothing is read.

The first baseline is one engine's, and every engine is held against it: two that disagree are told. What serves by
intent (an int8 copy on purpose, a machine of another kind) is accepted by resolving the episode: a new baseline is
frozen then, engine by engine, and an engine that comes later is held against the first one's.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import httpx
import numpy as np

from tuneloop.monitor import alerts
from tuneloop.monitor.canaries import (
    BASELINE_ROUNDS,
    FRESH_ROUNDS,
    SPLITS,
    Baseline,
    Round,
    canaries,
    changed_test,
    looks_moved,
    quiet,
)
from tuneloop.monitor.causes import explained, gather
from tuneloop.monitor.detectors import Outcome, window_alpha
from tuneloop.monitor.filing import BY
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.reading import read_texts
from tuneloop.monitor.reference import score_id
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import DETECTORS, SERVED_MODEL_CHANGE, budget_share
from tuneloop.registry import Registry
from tuneloop.registry.errors import NotFound, Unavailable
from tuneloop.registry.nouns import AlertEpisode, EngineState, Route, WindowScore, version_name

log = logging.getLogger("tuneloop.monitor")
_RECENT = 50  # checks read back to see whether the stream has gone quiet
Judged = tuple[str, Outcome | None, dict[str, Any]]


class CanaryWatch:
    """Reads canaries and keeps the episodes of what they tell; `stopping` is asked before every text. `rng` draws how
    each round is read."""

    def __init__(
        self,
        registry: Registry,
        settings: MonitorSettings,
        client: httpx.Client,
        metrics: Metrics,
        stopping: Callable[[], bool] = lambda: False,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._client = client
        self._metrics = metrics
        self._stopping = stopping
        self._rng = rng or random.Random()
        self._share = budget_share(SERVED_MODEL_CHANGE, settings)

    def watch(self, route: Route) -> None:
        """Every version of the route that is due; ends the episodes of those that left it.

        Raises:
            Unavailable: the database does not answer.
            Stopped: told to end while an engine was reading; nothing is concluded from that round.
        """
        for episode in self._open(route.model):
            if episode.version not in route.split:
                note = f"{version_name(route.model, episode.version)} left the route with revision {route.revision}"
                self._end(episode, note)
        for arm in route.arms:
            self._watch_version(route.model, arm.version)

    def _watch_version(self, model: str, version: int) -> None:
        name = version_name(model, version)
        engines = self._registry.fleet.serving(name)
        newest = next(iter(self._scores(model, version, 1)), None)
        if newest is None or self._is_accepted(newest):
            if engines:
                self._freeze(model, version, engines[:1] if newest is None else engines, newest)
            return
        if self._registry.clock() < newest.window_end + timedelta(seconds=self._settings.canary_every_s):
            return
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
            self._raise(score)
        self._end_quiet(model, version)

    def _freeze(self, model: str, version: int, engines: Sequence[EngineState], newest: WindowScore | None) -> None:
        """The baseline of those of the engines that can be read, and read the same tokens each time."""
        name, began = version_name(model, version), self._registry.clock()
        frozen: dict[str, Baseline] = {}
        for engine in engines:
            try:
                rounds = [self._round(engine, name) for _ in range(BASELINE_ROUNDS)]
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
            "canaries": _digest(),
        }
        quiet_one = Outcome(0.0, frozen[first].floor, 1.0, 0.0, 0)
        self._store(model, version, newest, ("none", quiet_one, detail), n=BASELINE_ROUNDS, start=began)

    def _check(self, newest: WindowScore, engines: Sequence[EngineState], n: int, alpha: float) -> WindowScore:
        model, version, name = newest.model, newest.version, version_name(newest.model, newest.version)
        frozen = self._baseline_of(newest)
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
        return self._store(model, version, newest, (verdict, worst, detail), n=n, start=start)

    def _look(self, baseline: Baseline, engine: EngineState, name: str, alpha: float) -> Outcome:
        seen = self._round(engine, name)
        if not looks_moved(baseline, seen):
            return quiet(baseline, seen, alpha)
        return changed_test(baseline, [self._round(engine, name) for _ in range(FRESH_ROUNDS)], alpha)

    def _round(self, engine: EngineState, name: str) -> Round:
        """One reading of every canary, in any order and so many at once, as traffic comes.

        Both are drawn anew for each round, so that the baseline's and fresh ones are alike while the model is: the
        test leans on it.
        """
        texts = list(canaries())
        order = self._rng.sample(range(len(texts)), len(texts))
        read = read_texts(
            self._client,
            engine.url,
            name,
            [texts[index] for index in order],
            concurrency=self._rng.randint(1, self._settings.scorer_concurrency),
            stopping=self._stopping,
        )
        by_text = dict(zip(order, read, strict=True))
        return np.array([token.logprob for index in range(len(texts)) for token in by_text[index]])

    def _store(
        self,
        model: str,
        version: int,
        newest: WindowScore | None,
        found: Judged,
        *,
        n: int,
        start: datetime,
    ) -> WindowScore:
        verdict, outcome, detail = found
        number = 0 if newest is None else int(newest.detail["window"]) + 1
        now, gamma = self._registry.clock(), self._settings.mean_run_length
        score = WindowScore.model_validate(
            {
                "id": score_id(model, version, SERVED_MODEL_CHANGE, number),
                "at": now,
                "model": model,
                "version": version,
                "signal": SERVED_MODEL_CHANGE,
                "window_start": start,
                "window_end": now,
                "n": n,
                "statistic": outcome.statistic if outcome else 0.0,
                "threshold": outcome.threshold if outcome else 0.0,
                "p_value": outcome.p_value if outcome else None,
                "mean_run_length": gamma,
                "verdict": verdict,
                "detail": {"detector": DETECTORS[SERVED_MODEL_CHANGE], "mean_run_length": gamma, "window": number}
                | detail,
            }
        )
        if not self._registry.episodes.add_score(score):
            return self._registry.episodes.score(score.id)  # another monitor was first; its reading stands
        self._metrics.judged(score, now)
        log.info("%s %s: %.4g nats per token, %s", version_name(model, version), score.signal, score.statistic, verdict)
        return score

    def _raise(self, score: WindowScore) -> None:
        now, pages = self._registry.clock(), self._settings.paging(score.model)
        mine = self._episodes(score.model, score.version)
        episode = next((e for e in mine if e.state != "resolved"), None)
        if episode is None:
            if alerts.is_news(score, mine):
                opened = self._registry.episodes.open(self._explained(alerts.opened(score, now, pages), now))
                log.warning("episode %s opened (%s): %s", opened.id, opened.severity, opened.evidence["summary"])
            return
        changed = alerts.joined(episode, score, now, pages)
        if changed != episode:
            self._registry.episodes.update(episode, changed, by=BY, action="episode.window")

    def _explained(self, episode: AlertEpisode, now: datetime) -> AlertEpisode:
        return explained(episode, gather(self._registry, episode, self._settings.changes_s, now))

    def _end_quiet(self, model: str, version: int) -> None:
        """Ends what is over; not what was seen before the newest baseline, which may hold what moved: people end that.

        A baseline is frozen while an episode is open only when the canary texts are others than before.
        """
        clear_after, scores = self._settings.clear_after, self._scores(model, version, _RECENT)
        try:
            frozen_at = self._baseline_of(scores[-1]).at
        except NotFound:
            return
        for episode in self._open(model):
            mine = episode.version == version and episode.opened_at > frozen_at
            if mine and alerts.is_quiet(scores, clear_after):
                self._end(episode, f"{clear_after} checks in a row read what was read at first")

    def _end(self, episode: AlertEpisode, note: str) -> None:
        over = alerts.resolved(episode, note, self._registry.clock())
        over = over.model_copy(update={"evidence": over.evidence | {"cleared": True}})
        self._registry.episodes.update(episode, over, by=BY, action="episode.resolve")
        log.warning("episode %s resolved: %s", episode.id, note)

    def _is_accepted(self, newest: WindowScore) -> bool:
        """Whether a person resolved an episode since the newest baseline: what serves now is what is meant to."""
        try:
            since = self._baseline_of(newest)
        except NotFound:
            return True
        if since.detail["canaries"] != _digest():
            return True  # the texts themselves have changed
        return any(
            e.resolved_at is not None and e.resolved_at > since.at and "cleared" not in e.evidence
            for e in self._episodes(newest.model, newest.version)
        )

    def _baseline_of(self, newest: WindowScore) -> WindowScore:
        return newest if "rounds" in newest.detail else self._registry.episodes.score(newest.detail["baseline"])

    def _scores(self, model: str, version: int, limit: int) -> Sequence[WindowScore]:
        return self._registry.episodes.scores(model, version=version, signal=SERVED_MODEL_CHANGE, limit=limit)

    def _episodes(self, model: str, version: int) -> Sequence[AlertEpisode]:
        found = self._registry.episodes.all(model, version=version, signal=SERVED_MODEL_CHANGE)
        for row in found.unreadable:  # of what is over none is needed; an open one is refused by `Episodes.open`
            log.error("left out of what %s has been through: %s", version_name(model, version), row)
        return found

    def _open(self, model: str) -> Sequence[AlertEpisode]:
        return self._registry.episodes.all(model, signal=SERVED_MODEL_CHANGE, open_only=True).whole()


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


def _digest() -> str:
    return sha256("\n".join(canaries()).encode()).hexdigest()
