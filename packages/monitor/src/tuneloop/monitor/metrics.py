"""What Prometheus scrapes from the monitor: its own collector registry, so nothing of the process leaks in."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from datetime import datetime
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import AlertEpisode, WindowScore

_STREAM = ("model", "version", "signal")


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
        self._open = Gauge("tuneloop_episodes_open", "Episodes not resolved", ("model", "severity"), registry=to)
        self._lag = Gauge(
            "tuneloop_monitor_lag_seconds",
            "Age of the last record of the newest judged window",
            ("model",),
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
        self._lag.labels(score.model).set((now - score.window_end).total_seconds())

    def newest(self, score: WindowScore) -> None:
        """The newest window of a stream, judged now or by an earlier process."""
        if score.verdict != "not enough data":
            stream = (score.model, str(score.version), score.signal)
            self._statistic.labels(*stream).set(score.statistic)
            self._threshold.labels(*stream).set(score.threshold)

    def only(self, champions: dict[str, int]) -> None:
        """Drop the streams of versions that are champions no more."""
        for gauge in (self._statistic, self._threshold):
            for sample in next(iter(gauge.collect())).samples:
                labels = sample.labels
                if champions.get(labels["model"]) != int(labels["version"]):
                    gauge.remove(*(labels[name] for name in _STREAM))

    def open_episodes(self, episodes: Sequence[AlertEpisode]) -> None:
        """The episodes that are open after a pass."""
        self._open.clear()
        for (model, severity), n in Tally((e.model, e.severity) for e in episodes).items():
            self._open.labels(model, severity).set(n)

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
