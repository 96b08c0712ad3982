"""The monitor: one pass judges what is new of every champion, and acts on it; a loop makes passes.

Invariants: a window of a signal is judged once (its score's id is made of model, version, signal and index), an
alarm is acted on at least once and has effect once, so a monitor killed anywhere goes on where it stopped. It needs
no state of its own.

A pass is whole within minutes, whatever has queued up: models share SPEND_S of it for their windows, each judges one at
least, and goes on in the next. A pass that was cut short is followed by one that begins with who had no turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from tuneloop.monitor.canary_watch import CanaryWatch
from tuneloop.monitor.challengers import Challengers
from tuneloop.monitor.comparison import Comparison, corrected_late, thin, unread, without_reference
from tuneloop.monitor.filing import BY
from tuneloop.monitor.judging import Judge
from tuneloop.monitor.keeping import Keeper
from tuneloop.monitor.late_corrections import LateCorrections, late_corrections
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.parity_pool import pool_of
from tuneloop.monitor.quality import thumbs_of
from tuneloop.monitor.reference import ANCHOR, Gathering, champion_since, score_id
from tuneloop.monitor.scorer import Scorer, Stopped
from tuneloop.monitor.settings import FEWEST_IN_A_WINDOW, MonitorSettings
from tuneloop.monitor.signals import (
    BAD_CORRECTIONS,
    DETECTORS,
    GUARDED,
    INVALID_FORMAT,
    OWN_REFERENCE,
    PERPLEXITIES,
    windowed,
)
from tuneloop.monitor.standards import Standard, Standards, compared
from tuneloop.monitor.standing import standing
from tuneloop.monitor.streams import last_scores
from tuneloop.monitor.textless import Textless, without_text
from tuneloop.monitor.unread import Reason, why_textless, why_unfilled
from tuneloop.monitor.windows import Window, judged_window, next_window, progress
from tuneloop.registry import Registry
from tuneloop.registry.deliveries.silences import silenced
from tuneloop.registry.errors import NotFound, TuneloopError, Unavailable
from tuneloop.registry.nouns import AlertEpisode, RequestRecord, Route, WindowScore, version_name
from tuneloop.registry.rollouts.rollout import OPEN
from tuneloop.registry.routes.store import CurrentRoutes

log = logging.getLogger("tuneloop.monitor")
# Of a pass, for all champions; a window takes engines about 11 s, and a monitor without a whole pass for 600 s is paged
# for. Challengers have as much again as `challengers.SPEND_S` says.
SPEND_S = 120.0


@dataclass(frozen=True)
class ModelState:
    """What one pass found of one model."""

    model: str
    version: int | None  # None: its route cannot be read
    judged: int  # windows judged in this pass
    alarms: int  # of which signals raised an alarm
    waiting: str  # what the next window waits for
    failure: str = ""  # why the pass over this model was cut short
    stopped: Reason | None = None  # why no window is judged any more, for want of text


class Monitor:
    """Watches every model that has a route. `stopping` is asked between windows, so a stop is prompt; `alive` is called
    after each whole pass of `run`; `elapsed` tells seconds that no clock's being set changes."""

    def __init__(
        self,
        registry: Registry,
        settings: MonitorSettings,
        scorer: Scorer,
        metrics: Metrics,
        stopping: Callable[[], bool] = lambda: False,
        alive: Callable[[], object] = lambda: None,
        canaries: CanaryWatch | None = None,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._alive = alive
        self._elapsed = elapsed
        self._passes = 0
        self._turns: dict[str, int] = {}  # model → the last pass that looked at it
        self._registry = registry
        self._settings = settings
        self._scorer = scorer
        self._canaries = canaries
        self._judge = Judge(settings, scorer)
        self._challengers = Challengers(registry, settings, scorer, metrics, stopping)
        self._metrics = metrics
        self._stopping = stopping
        self._signals = windowed(settings)
        self._standards = Standards(registry, settings, scorer)
        self._keeper = Keeper(registry, settings, watches_canaries=canaries is not None)
        self._textless = Textless(registry)
        self._said: dict[str, str] = {}

    def run(self, wait: Callable[[float], object]) -> None:
        """Pass after pass until `stopping`; `wait` sleeps. A part that is away ends a pass, not the loop."""
        while not self._stopping():
            try:
                if any(state.failure for state in self.run_once()):
                    self._metrics.failed()
                else:
                    self._alive()
            except Stopped:
                return
            except TuneloopError as error:
                self._metrics.failed()
                log.warning("pass cut short, trying again in %.0f s: %s", self._settings.every_s, error)
            wait(self._settings.every_s)

    def run_once(self) -> list[ModelState]:
        """One pass over all models; what goes wrong with one ends its part of the pass, and is in its state.

        Raises:
            Unavailable: the database does not answer; what was judged before that is kept.
            Stopped: told to end while an engine was scoring; that window is judged by the next process.
        """
        self._registry.retraining.expire(by=BY)
        self._standards.drop_deleted()
        self._look_for_standing()  # before the windows: a backlog of them may take engines minutes
        routes = self._registry.routes.current_all()
        states = sorted(self._each(routes), key=lambda state: state.model)
        tried = self._challengers.watch(self._registry.routes.current_all())  # last, and for a while only
        states = [replace(state, failure=state.failure or tried.get(state.model, "")) for state in states]
        self._metrics.only(
            {model: route.champion for model, route in routes.items()},
            {model: route.split for model, route in routes.items()},
        )
        self._metrics.stopped({state.model: state.stopped for state in states if state.stopped})
        episodes = self._registry.episodes.all(open_only=True)
        for row in episodes.unreadable:
            log.error("not counted among the open episodes: %s", row)
        silences, now = self._registry.silences.all(active_only=True), self._registry.clock()
        loud = [episode for episode in episodes if silenced(episode, silences, now) is None]
        if any(state.failure for state in states):
            self._metrics.open_episodes(loud)
        else:
            self._metrics.passed(now, loud)
        return states

    def _each(self, routes: CurrentRoutes) -> Iterator[ModelState]:
        """Every model in turn: first those that the last pass did not come to."""
        models = {*routes, *routes.unreadable}
        self._passes += 1
        self._turns = {model: self._turns.get(model, 0) for model in models}
        for model in sorted(models, key=lambda model: (self._turns[model], model)):
            self._turns[model] = self._passes
            yield self._watched(model, routes)

    def _look_for_standing(self) -> None:
        rollouts = self._registry.rollouts.all(states=OPEN)
        requests = self._registry.retraining.all(open_only=True)
        experiments = self._registry.experiments.all_running()
        for row in (*rollouts.unreadable, *experiments.unreadable, *requests.unreadable):
            log.error("not looked at for whether it stands still: %s", row)
        self._metrics.stands(standing(rollouts, experiments, requests, self._registry.clock()))

    def _watched(self, model: str, routes: CurrentRoutes) -> ModelState:
        try:
            return self._watch(model)
        except (Stopped, Unavailable):
            raise
        except TuneloopError as error:
            log.error("%s: this pass over it is cut short: %s", model, error)
            failure = str(error)
        except Exception as error:  # a surprise about one model must not leave the others unwatched
            log.exception("%s: this pass over it is cut short", model)
            failure = f"{type(error).__name__}: {error}"
        return ModelState(model, routes[model].champion if model in routes else None, 0, 0, "", failure)

    def _watch(self, model: str) -> ModelState:
        history = self._registry.routes.history(model)
        if history.unreadable:
            self._registry.routes.current(model)  # raises when the newest is among them: what serves is not known then
        version = history[0].champion
        if self._canaries is not None:  # first: what a changed model does to the traffic is no drift of it
            self._canaries.watch(history[0])
        self._keeper.end_replaced(history)
        if self._textless.has_nothing_left(model, version):
            self._keeper.pursue(model, stopped=without_text(model, version))
            return self._textless_state(model, version)
        standard = self._standards.of(history)
        judged = alarms = 0
        if isinstance(standard, Gathering):
            since, taken = champion_since(history), frozenset[str]()
            looked = not standard.early
            waiting = standard.why
            self._read_ahead(model, version, standard.records)
            self._keeper.pursue(model, stopped=standard.why if standard.lost else "")
        else:
            self._finish_last(history, version)
            until = self._elapsed() + SPEND_S / max(len(self._turns), 1)
            while True:
                self._keeper.pursue(model)  # after each window: a backlog of them may take engines minutes
                done = progress(self._registry, history, version, standard.reference, self._settings.late_s)
                window = next_window(
                    self._registry, model, version, done, self._settings.window, self._settings.window_s
                )
                if isinstance(window, tuple) or self._stopping() or (judged and self._elapsed() >= until):
                    break
                scores = self._judge_window(model, version, standard, window)
                if len(scores) < len(self._signals_of(model)):
                    break  # another monitor has cut it elsewhere: the next pass completes that one
                standard = standard.held_to(window)
                judged, alarms = judged + 1, alarms + sum(score.verdict == "drift" for score in scores)
            looked = isinstance(window, tuple)
            waiting = f"window {done.next_index} of {model}@{version} {self._waits(window)}"
            since, taken = done.horizon, done.taken
            if isinstance(window, tuple) and self._keeper.heard(model) is None:
                early = not standard.reference.frozen and not self._settings.season_days
                self._read_ahead(model, version, (*(standard.reference.records if early else ()), *window))
        if looked and self._textless.gone_through(model, version):
            return self._textless_state(model, version, judged, alarms)
        if self._said.get(model) != waiting:
            self._said[model] = waiting
            log.info("%s", waiting)
        lost = isinstance(standard, Gathering) and standard.lost
        stopped = why_unfilled(self._registry, model, version, since, taken, lost=lost) if looked else None
        return ModelState(model, version, judged, alarms, waiting, stopped=stopped)

    def _textless_state(self, model: str, version: int, judged: int = 0, alarms: int = 0) -> ModelState:
        why = why_textless(self._registry, model, version)
        return ModelState(model, version, judged, alarms, without_text(model, version), stopped=why)

    def _waits(self, window: Window | tuple[RequestRecord, ...]) -> str:
        if isinstance(window, Window):
            return "is closed and waits for the next pass"
        said = f"holds {len(window)} of {self._settings.window} records"
        if not window or not self._settings.window_s:
            return said
        closes = window[0].at + timedelta(seconds=self._settings.window_s)
        return f"{said}; from {closes:%Y-%m-%d %H:%M:%S}Z on {FEWEST_IN_A_WINDOW} are enough"

    def _read_ahead(self, model: str, version: int, records: Sequence[RequestRecord]) -> None:
        """Read on an engine what has come so far, so that a full window is judged at once."""
        with suppress(Unavailable):  # said when the window is judged, if it lasts
            corrections = self._registry.traffic.corrections_for([record.id for record in records])
            self._scorer.score(version_name(model, version), records, corrections)

    def _finish_last(self, history: Sequence[Route], version: int) -> None:
        """Complete the last judged window, in case a monitor was stopped in the midst of it."""
        model = history[0].model
        anchors = last_scores(self._registry, model, version, ANCHOR, 1)
        standard = self._standards.of_judged(history, anchors[0]) if anchors else None
        if standard is not None:
            window = judged_window(self._registry, anchors[0])
            if len(window.records) == window.size:
                self._judge_window(model, version, standard, window)
            else:  # retention took some: nothing can be added
                self._keeper.take(self._judged_of(model, version, window))

    def _judge_window(self, model: str, version: int, standard: Standard, window: Window) -> list[WindowScore]:
        reference = standard.reference
        if not window.is_thin:  # of the rest guards tell by all that was asked
            reference = compared(standard, window.records, self._settings, self._settings.reference)
        ids = [] if window.is_thin else [record.id for record in (*reference.records, *window.records)]
        traffic, now = self._registry.traffic, self._registry.clock()
        feedback = traffic.feedback_for(ids)
        thumbs = thumbs_of(feedback)
        caught = self._standards.guarded(model, reference, window, self._signals)
        corrections = traffic.corrections_for(ids)
        most = self._settings.parity_windows
        pool = pool_of(self._registry, model, version, window.index, reference, most)
        late, belated = frozenset[str](), LateCorrections()
        if not window.is_thin:
            late = corrected_late(reference.records, window.records, feedback, now)
        judges = BAD_CORRECTIONS in self._signals and not standard.lent and not window.is_thin
        if judges and not self._has(model, version, window):
            belated = late_corrections(self._registry, model, version, window.index, reference, feedback, late, now)
        held = Comparison(model, version, reference, window, corrections, thumbs, caught, pool, late, belated)
        scores: list[WindowScore] = []
        try:
            for signal in self._signals_of(model):  # none is told before all are known: the last may name the cause
                spared = self._keeper.heard(model) if signal in PERPLEXITIES and scores[0].verdict == "drift" else None
                scores.append(score := self._score(signal, held, standard, spared))
                if score.request_ids != tuple(record.id for record in window.records):
                    self._keeper.take(scores[:-1])
                    return scores  # another monitor has cut it elsewhere
        except (Stopped, Unavailable):
            raise
        except Exception:  # it may be so in every pass: of the others people are told all the same
            self._keeper.take(scores)
            raise
        self._keeper.take(scores)
        self._keeper.end_quiet(scores[0], standard)
        return scores

    def _judged_of(self, model: str, version: int, window: Window) -> list[WindowScore]:
        """What is known of a window that was judged before, in the order of signals."""
        signals = self._signals_of(model)
        known = self._registry.episodes.scores_of([score_id(model, version, s, window.index) for s in signals])
        return sorted(known, key=lambda score: signals.index(score.signal))

    def _has(self, model: str, version: int, window: Window) -> bool:
        """Whether corrections were looked at with this window already."""
        try:
            self._registry.episodes.score(score_id(model, version, BAD_CORRECTIONS, window.index))
        except NotFound:
            return False
        return True

    def _signals_of(self, model: str) -> Sequence[str]:
        declared = self._settings.answer_format(model) is not None
        return [signal for signal in self._signals if declared or signal != INVALID_FORMAT]

    def _score(self, signal: str, held: Comparison, standard: Standard, spared: AlertEpisode | None) -> WindowScore:
        identity = held.score_id(signal)
        try:
            known = self._registry.episodes.score(identity)
        except NotFound:
            pass
        else:
            self._metrics.newest(known)
            return known
        if standard.lent and signal in OWN_REFERENCE:
            judgement = without_reference(standard.lent)
        elif held.window.is_thin and signal not in GUARDED:
            judgement = thin(held.window)
        else:
            judgement = unread(spared.id) if spared else self._judge.judge(signal, held)
        detail = judgement.detail | {
            "window": held.window.index,
            "high_water": held.window.high_water.isoformat(),
            "reference": held.reference.summary(),
            "alpha": self._judge.alpha(signal, held.window),
            "mean_run_length": self._settings.mean_run_length,
            "detector": DETECTORS[signal],
            "permutations": judgement.result.permutations if judgement.result else 0,
        }
        if signal == ANCHOR:
            detail |= standard.noted() | {"stopped": held.window.stopped}
        if signal in GUARDED and judgement.verdict == "drift":
            detail["slices"] = self._standards.where_found(signal, held.model, held.reference, held.window)
        now = self._registry.clock()
        score = WindowScore(
            id=identity,
            at=now,
            model=held.model,
            version=held.version,
            signal=signal,
            window_start=held.window.start,
            window_end=held.window.end,
            n=judgement.n,
            statistic=judgement.result.statistic if judgement.result else 0.0,
            threshold=judgement.result.threshold if judgement.result else 0.0,
            p_value=judgement.result.p_value if judgement.result else None,
            mean_run_length=self._settings.mean_run_length,
            verdict=judgement.verdict,
            detail=detail,
            request_ids=tuple(record.id for record in held.window.records),
        )
        if not self._registry.episodes.add_score(score):
            return self._registry.episodes.score(identity)  # another monitor was first; its judgement stands
        self._metrics.judged(score, now)
        log.info(
            "%s: statistic %.4g, threshold %.4g, %s", self._of(score), score.statistic, score.threshold, score.verdict
        )
        return score

    @staticmethod
    def _of(score: WindowScore) -> str:
        return f"{score.model}@{score.version} {score.signal} window {score.detail['window']}"
