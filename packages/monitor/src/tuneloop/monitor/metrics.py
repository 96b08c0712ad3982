"""What Prometheus scrapes from the monitor: its own collector registry, so nothing of the process leaks in."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tuneloop.monitor.signals import DETECTORS_OF_TRIALS, SERVED_MODEL_CHANGE
from tuneloop.monitor.standing import Standing
from tuneloop.monitor.unread import Reason
from tuneloop.registry.deliveries.outbox import Backlog
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import AlertEpisode, WindowScore

_STREAM = ("model", "version", "signal")


def _label_sets(metric: Counter | Gauge) -> list[dict[str, str]]:
    """By what a metric is told apart now, in the order it names them."""
    samples = next(iter(metric.collect())).samples
    return [sample.labels for sample in samples if not sample.name.endswith("_created")]


def _set(gauge: Gauge, values: Mapping[tuple[str, str], float]) -> None:
    """These and no others, of two labels each; no scrape in between finds a series gone that stays."""
    for known in _label_sets(gauge):
        if tuple(known.values()) not in values:
            gauge.remove(*known.values())
    for labels, value in values.items():
        gauge.labels(*labels).set(value)


class Metrics:
    """The monitor's numbers; cheap to set, labels of a version leave with it."""

    def __init__(self) -> None:
        self.collectors = CollectorRegistry()
        to = self.collectors
        self._statistic = Gauge(
            "tuneloop_drift_statistic", "Statistic of the newest judged window", _STREAM, registry=to
        )
        self._threshold = Gauge(
            "tuneloop_drift_threshold", "What the statistic must exceed to alarm", _STREAM, registry=to
        )
        self._judged = Counter("tuneloop_windows_judged", "Windows by verdict", (*_STREAM, "verdict"), registry=to)
        self._open = Gauge(
            "tuneloop_episodes_open", "Episodes neither resolved nor silenced", ("model", "severity"), registry=to
        )
        self._rollouts = Gauge("tuneloop_rollouts_open", "Rollouts not ended", ("model", "state"), registry=to)
        self._undriven = Gauge(
            "tuneloop_rollout_undriven_seconds",
            "For how long no controller has held the running rollout",
            ("model",),
            registry=to,
        )
        self._due = Gauge(
            "tuneloop_bandit_step_due_seconds",
            "For how long a step of the running bandit has been due that no controller has seen to",
            ("model",),
            registry=to,
        )
        self._waiting = Gauge(
            "tuneloop_retraining_waiting",
            "Retraining requests that wait for a person, or until a budget's day is over",
            ("model", "waits_for"),
            registry=to,
        )
        self._waiting_s = Gauge(
            "tuneloop_retraining_waiting_seconds",
            "Since the oldest of these requests was filed",
            ("model", "waits_for"),
            registry=to,
        )
        self._receivers = Gauge(
            "tuneloop_alert_receivers", "Receivers that the monitor delivers episodes to itself", registry=to
        )
        self._untold = Gauge(
            "tuneloop_episodes_untold",
            "Episodes neither resolved nor silenced that none of these receivers is told of",
            ("model", "severity"),
            registry=to,
        )
        self._failing_s = Gauge(
            "tuneloop_alert_delivery_failing_seconds",
            "Since the first attempt at the oldest delivery that a receiver has not taken; 0: none",
            ("receiver",),
            registry=to,
        )
        self._given_up = Gauge(
            "tuneloop_alert_deliveries_given_up", "Deliveries given up within a day", ("receiver",), registry=to
        )
        self._unjudged = Gauge(
            "tuneloop_signal_unjudged_seconds",
            "For how long a signal of the champion was looked at and there was not enough to judge it; 0: it is judged",
            ("model", "signal"),
            registry=to,
        )
        self._lag = Gauge(
            "tuneloop_monitor_lag_seconds",
            "Age of the last record of the newest judged window",
            ("model",),
            registry=to,
        )
        self._stopped = Gauge(
            "tuneloop_windows_stopped",
            "1 while no window of the champion is judged for want of text",
            ("model", "reason"),
            registry=to,
        )
        self._failures = Counter(
            "tuneloop_monitor_pass_failures", "Passes cut short, for one model or for all", registry=to
        )
        self._last_pass = Gauge(
            "tuneloop_monitor_last_pass_timestamp_seconds", "When the last whole pass ended", registry=to
        )

    def judged(self, score: WindowScore, now: datetime) -> None:
        """A window was judged now."""
        stream = (score.model, str(score.version), score.signal)
        self._judged.labels(*stream, score.verdict).inc()
        self.newest(score)
        if score.request_ids:  # canaries judge no records
            self._lag.labels(score.model).set((now - score.window_end).total_seconds())

    def compared(self, score: WindowScore) -> None:
        """A challenger's window was held against its champion's."""
        self._judged.labels(score.model, str(score.version), score.signal, score.verdict).inc()
        self.newest(score)

    def newest(self, score: WindowScore) -> None:
        """The newest window of a stream, judged now or by an earlier process."""
        if score.verdict != "not enough data":
            stream = (score.model, str(score.version), score.signal)
            self._statistic.labels(*stream).set(score.statistic)
            self._threshold.labels(*stream).set(score.threshold)

    def only(self, champions: Mapping[str, int], routed: Mapping[str, Collection[int]]) -> None:
        """Drop the streams of versions that are champions no more; of canaries and trials, of what left its route; and
        the lag of models that have none."""
        for of_streams in (self._statistic, self._threshold, self._judged):
            for labels in _label_sets(of_streams):
                model, version = labels["model"], int(labels["version"])
                of_any_arm = labels["signal"] in (SERVED_MODEL_CHANGE, *DETECTORS_OF_TRIALS)
                if version not in routed.get(model, ()) if of_any_arm else champions.get(model) != version:
                    of_streams.remove(*labels.values())
        for labels in _label_sets(self._lag):
            if labels["model"] not in champions:
                self._lag.remove(labels["model"])

    def open_episodes(self, episodes: Sequence[AlertEpisode]) -> None:
        """The episodes that are open after a pass, less those that are silenced."""
        self._open.clear()
        for (model, severity), n in Tally((e.model, e.severity) for e in episodes).items():
            self._open.labels(model, severity).set(n)

    def stands(self, found: Standing) -> None:
        """What stands still as a pass begins."""
        for gauge in (self._rollouts, self._undriven, self._due, self._waiting, self._waiting_s):
            gauge.clear()
        for (model, state), n in found.rollouts.items():
            self._rollouts.labels(model, state).set(n)
        for model, seconds in found.undriven_s.items():
            self._undriven.labels(model).set(seconds)
        for model, seconds in found.due_s.items():
            self._due.labels(model).set(seconds)
        for (model, waits_for), waiting in found.waiting.items():
            self._waiting.labels(model, waits_for).set(waiting.requests)
            self._waiting_s.labels(model, waits_for).set(waiting.oldest_s)

    def stopped(self, reasons: Mapping[str, Reason]) -> None:
        """The models no window of whose champions was judged in a pass for want of text, and why; no others."""
        self._stopped.clear()
        for model, reason in reasons.items():
            self._stopped.labels(model, reason).set(1)

    def receivers(self, backlogs: Mapping[str, Backlog], receivers: int) -> None:
        """What a round of deliveries left; none that is a receiver no more."""
        self._receivers.set(receivers)
        for gauge in (self._failing_s, self._given_up):
            gauge.clear()
        for name, backlog in backlogs.items():
            self._failing_s.labels(name).set(backlog.failing_s)
            self._given_up.labels(name).set(backlog.given_up)

    def untold(self, episodes: Sequence[AlertEpisode]) -> None:
        """The open episodes that no receiver hears of, as of now."""
        _set(self._untold, Tally((episode.model, episode.severity) for episode in episodes))

    def unjudged(self, seconds: Mapping[tuple[str, str], float]) -> None:
        """For how long each signal of each model has told nothing."""
        _set(self._unjudged, seconds)

    def passed(self, at: datetime, episodes: Sequence[AlertEpisode]) -> None:
        """A whole pass ended, over every model."""
        self.open_episodes(episodes)
        self._last_pass.set(at.timestamp())

    def failed(self) -> None:
        """A pass was cut short, for every model or for one."""
        self._failures.inc()

    def serve(self, host: str, port: int) -> tuple[WSGIServer, Thread]:
        """Answer scrapes from a thread.

        Raises:
            Unavailable: the port is taken.
        """
        try:
            return start_http_server(port, host, registry=self.collectors)
        except OSError as error:
            raise Unavailable(f"metrics port {host}:{port}: {error.strerror}; choose another metrics_port") from None
