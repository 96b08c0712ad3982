"""Challengers beside their champion: what a version that is tried on some traffic does worse than the champion does at
the same time.

A challenger's traffic is cut into windows of its own. Each is held against what the champion answered in that time, not
against a frozen reference: what users ask, and the hour, are the same for both. The windows of a trial are strata of
one always-valid comparison (`statistics.sequences`, as everything a rollout is judged by), so that a verdict may be
read after every window. Nobody is alerted and no policy asked: the scores are written, and a rollout's judgement reads
them.

Champions come first: a pass spends SPEND_S on challengers, and one window more at most, whatever has queued up. Trials
take turns, a window each: new ones first, the newest before all, then who has waited longest; within a trial windows
have their order.

Corrections are read once, when their window is judged: those that come later are counted and told, not read.

Cost: of a window, at most as many texts of the champion as of the challenger are read on an engine, and at most
`reference` of its records from the database; a trial ends after MOST_WINDOWS of them with its last verdict.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.reference import JUST_BEFORE, judgeable
from tuneloop.monitor.scorer import Scorer, Stopped
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import DETECTORS_OF_TRIALS, TRIAL_ANCHOR, TRIAL_CORRECTION_PERPLEXITY
from tuneloop.monitor.trials import Arms, Measured, Read, Said, measured, said_of
from tuneloop.monitor.windows import is_closed_by_time
from tuneloop.registry import Registry
from tuneloop.registry.corrections import corrects
from tuneloop.registry.errors import TuneloopError, Unavailable, Unreadable
from tuneloop.registry.nouns import RequestRecord, Route, WindowScore, version_name
from tuneloop.registry.routes.trials import trial_revisions

log = logging.getLogger("tuneloop.monitor")
MOST_WINDOWS = 200  # of a trial
SPEND_S = (
    30.0  # of a pass; a window takes engines about 11 s, and a monitor without a whole pass for 600 s is paged for
)
_SETTLED_S = 10.0  # gateways write records a second after they answer; a window is cut once they have
_LOOK_BACK = 64  # windows whose time a late record may fall into
_SLICES = 8  # of a window's time: from each as many of the champion's records


@dataclass(frozen=True)
class Trial:
    """A challenger with a share beside one champion."""

    model: str
    version: int
    champion: int
    since: datetime  # the first revision in a row that gave it a share beside this champion

    def score_id(self, signal: str, window: int) -> str:
        """The id of one judgement; a second monitor, or a restarted one, arrives at the same."""
        parts = (self.model, self.version, self.champion, self.since.isoformat(), signal, window)
        return "ws_" + sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]

    def named(self) -> dict[str, object]:
        """What its scores say of it: a version may be tried more than once."""
        return {"champion": self.champion, "since": self.since.isoformat()}


def trials_of(registry: Registry, route: Route) -> list[Trial]:
    """The trials of a model that are on; `route` is its newest revision.

    One whose revisions cannot all be read is logged and left out: a rollout cannot be judged on it either.
    """
    found = []
    for arm in route.arms[:-1]:
        try:
            revisions = trial_revisions(registry.routes.back(route.model), arm.version) if arm.weight_bp else []
        except Unreadable as error:
            log.error("%s is not judged beside its champion: %s", version_name(route.model, arm.version), error)
            continue
        if revisions:
            found.append(Trial(route.model, arm.version, revisions[0].champion, revisions[-1].at))
    return found


class Challengers:
    """Judges the windows of every challenger of a model; a monitor killed anywhere goes on where it stopped."""

    def __init__(
        self,
        registry: Registry,
        settings: MonitorSettings,
        scorer: Scorer,
        metrics: Metrics,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._scorer = scorer
        self._metrics = metrics
        self._stopping = stopping
        self._turns: dict[Trial, datetime] = {}  # running trial → when this process looked at it last

    def watch(self, routes: Mapping[str, Route]) -> dict[str, str]:
        """Judge whole windows that are not judged yet, of the challengers in these routes, for SPEND_S.

        Returns:
            Model → why the look at a trial of it was cut short.

        Raises:
            Unavailable: the database does not answer; what was judged before that is kept.
            Stopped: told to end while an engine was reading; that window is judged by the next process.
        """
        until, failures = self._registry.clock() + timedelta(seconds=SPEND_S), {}
        trials = [trial for route in routes.values() for trial in trials_of(self._registry, route)]
        self._turns = {trial: at for trial, at in self._turns.items() if trial in trials}
        trials.sort(key=lambda trial: trial.since, reverse=True)
        queue = deque([trial for trial in trials if trial not in self._turns])
        queue += sorted(self._turns, key=self._turns.__getitem__)
        while queue and self._registry.clock() < until and not self._stopping():
            trial = queue.popleft()
            self._turns[trial] = self._registry.clock()
            try:
                if self._look(trial):
                    queue.append(trial)
            except (Stopped, Unavailable):
                raise
            except Exception as error:  # a surprise about one trial must not leave the others unjudged
                log.exception("%s: this look at it is cut short", version_name(trial.model, trial.version))
                failures[trial.model] = (
                    str(error) if isinstance(error, TuneloopError) else f"{type(error).__name__}: {error}"
                )
        return failures

    def _look(self, trial: Trial) -> bool:
        """Judge the next window of a trial, if it is whole; whether it was."""
        judged = self._judged(trial, TRIAL_ANCHOR)
        window = self._next(trial, judged) if len(judged) < MOST_WINDOWS else ()
        if window:
            self._judge(trial, window, judged)
        return bool(window)

    def _judged(self, trial: Trial, signal: str) -> list[WindowScore]:
        newest = self._registry.episodes.scores(trial.model, version=trial.version, signal=signal, limit=MOST_WINDOWS)
        return [score for score in newest if score.detail["trial"] == trial.named()]

    def _next(self, trial: Trial, judged: Sequence[WindowScore]) -> tuple[RequestRecord, ...]:
        """The challenger's next window that is closed, by count or by time; empty while it fills.

        As a champion's (`windows`), it takes the oldest records that no window holds: what is answered slowly, or
        arrives late from a spool, carries the time at which it was asked.
        """
        size, until = self._settings.window, self._registry.clock() - timedelta(seconds=_SETTLED_S)
        taken = {request_id for score in judged for request_id in score.request_ids}
        since = max(trial.since, _high_water(judged, trial) - timedelta(seconds=self._settings.late_s))
        since = max(since, _high_water(judged[:-_LOOK_BACK], trial))
        limit = 4 * size + sum(score.window_end > since for score in judged) * size
        while True:
            served = self._registry.traffic.window(
                trial.model, since=since, until=until, version=trial.version, oldest=limit, asked=True
            )
            mine = [record for record in served if _of_arm(record, trial.version) and record.id not in taken]
            if len(mine) >= size:
                return tuple(mine[:size])
            if len(served) + len(served.unreadable) < limit:
                closed = is_closed_by_time([record.at for record in mine], self._settings.window_s, until)
                return tuple(mine) if closed else ()
            limit *= 2

    def _beside(
        self, trial: Trial, window: Sequence[RequestRecord], judged: Sequence[WindowScore]
    ) -> tuple[RequestRecord, ...]:
        """What the champion answered while the challenger did: as many records of each slice of the window.

        Late records stretch no window back over the ones before, whose records of the champion would count twice: the
        time of the others is compared, unless there are too few of those to tell one.
        """
        high_water = _high_water(judged, trial)
        on_time = [record for record in window if record.at > high_water]
        timed = on_time if len(on_time) >= _SLICES else window
        edges = [timed[index * len(timed) // _SLICES].at for index in range(_SLICES)]
        edges = sorted({edges[0] - JUST_BEFORE, *edges[1:], timed[-1].at})
        each = -(-self._settings.reference // (len(edges) - 1))
        found: list[RequestRecord] = []
        for start, end in itertools.pairwise(edges):
            served = self._registry.traffic.window(
                trial.model, since=start, until=end, version=trial.champion, oldest=each
            )
            found += [record for record in served if _of_arm(record, trial.champion)]
        return tuple(found)

    def _judge(self, trial: Trial, window: tuple[RequestRecord, ...], judged: Sequence[WindowScore]) -> None:
        arms, index = Arms(self._beside(trial, window, judged), window), len(judged)
        ids = [record.id for record in (*arms.champion, *arms.challenger)]
        corrections = self._registry.traffic.corrections_for(ids)
        for signal, found in self._measured(trial, arms, corrections):  # the anchor last: till then it is not judged
            earlier = [score for score in self._judged(trial, signal) if score.detail["window"] < index]
            said = said_of(signal, [*(s.detail["measured"] for s in earlier), found.values], self._settings)
            score = self._score(trial, arms, index, signal, found, said)
            if signal == TRIAL_CORRECTION_PERPLEXITY:
                corrected = sum(record.id in corrections for record in window)
                score = self._counting(score, corrected, self._late(earlier))
            if self._registry.episodes.add_score(score):
                self._metrics.compared(score)
                name = version_name(trial.model, trial.version)
                log.info("%s %s window %d: %s", name, signal, index, score.detail["said"])

    def _late(self, earlier: Sequence[WindowScore]) -> int:
        """Corrections of the challenger's answers that came after their window was judged, of the last windows."""
        counted = [score for score in earlier[-_LOOK_BACK:] if "corrected" in score.detail]  # not by earlier releases
        ids = [request_id for score in counted for request_id in score.request_ids]
        feedback = self._registry.traffic.feedback_for(ids)  # texts may have gone since, and records
        corrected = sum(any(map(corrects, items)) for items in feedback.values())
        return max(0, corrected - sum(int(s.detail["corrected"]) for s in counted))

    @staticmethod
    def _counting(score: WindowScore, corrected: int, late: int) -> WindowScore:
        said = f"{score.detail['said']}; {late} corrections of earlier windows came too late to be read"
        counts = {"corrected": corrected, "late": late} | ({"said": said} if late else {})
        if late and "reason" in score.detail:
            counts["reason"] = said
        return score.model_copy(update={"detail": score.detail | counts})

    def _measured(self, trial: Trial, arms: Arms, corrections: Mapping[str, str]) -> Iterator[tuple[str, Measured]]:
        def read_by(version: int) -> Read:
            def read(records: Sequence[RequestRecord], texts: Mapping[str, str]) -> dict[str, float]:
                scored = self._scorer.score(version_name(trial.model, version), records, texts)
                return {i: s.correction_nats for i, s in scored.items() if s.correction_nats is not None}

            return read

        read = {"champion": read_by(trial.champion), "challenger": read_by(trial.version)}
        for signal in DETECTORS_OF_TRIALS:
            try:
                yield signal, measured(signal, arms, corrections, read)
            except Unavailable as error:  # of an engine: what it would have said stays unknown
                yield signal, Measured({}, str(error))

    def _score(self, trial: Trial, arms: Arms, index: int, signal: str, found: Measured, said: Said) -> WindowScore:
        detail: dict[str, Any] = {
            "window": index,
            "trial": trial.named(),
            "measured": found.values,
            "detector": DETECTORS_OF_TRIALS[signal],
            "unit": "more than the champion at the same time, of one trial so far",
            "said": said.why,
            "interval": said.interval and list(said.interval),
        }
        if said.verdict == "not enough data":
            detail["reason"] = found.why or said.why
        return WindowScore(
            id=trial.score_id(signal, index),
            at=self._registry.clock(),
            model=trial.model,
            version=trial.version,
            signal=signal,
            window_start=arms.challenger[0].at,
            window_end=arms.challenger[-1].at,
            n=len(arms.challenger),
            statistic=said.estimate,
            threshold=said.margin,
            p_value=None,
            mean_run_length=self._settings.mean_run_length,  # of the model; no promise of a trial, which alerts nobody
            verdict=said.verdict,
            detail=detail,
            request_ids=tuple(record.id for record in arms.challenger),
        )


def _high_water(judged: Sequence[WindowScore], trial: Trial) -> datetime:
    return max([trial.since, *(score.window_end for score in judged)])


def _of_arm(record: RequestRecord, version: int) -> bool:
    """Whether the split gave the version this request, and it answered."""
    return judgeable(record) and record.assigned_version == version == record.served_version
