"""What every request counts, as plain numbers that Prometheus' types are made of only when it asks.

A child of a Prometheus metric takes a lock and checks its labels for each number: of the six that a request counts that
is more than what is counted is worth. The event loop alone writes here; whoever asks may see a request half counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tuneloop.serve.gateway.exchange import Exchange

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_LABELS = ("model", "version")
_BOUNDS = (*map(floatToGoString, SECONDS), "+Inf")


class Times:
    """A histogram."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * len(_BOUNDS)  # each without those of the buckets before it
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: bound → how many are not above it."""
        return list(zip(_BOUNDS, map(float, accumulate(self.counts)), strict=True))


@dataclass(slots=True)
class Sums:
    """Of one model and version; the version is empty where no engine was asked."""

    statuses: Counter[int] = field(default_factory=Counter)
    total: Times = field(default_factory=Times)
    first_token: Times = field(default_factory=Times)
    streams: int = 0
    prompt: int = 0
    completion: int = 0
    has_usage: bool = False


class Tally(Collector):
    """Counts requests by model and version."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Sums] = {}

    def finished(self, exchange: Exchange) -> None:
        """Count one request."""
        plan, target, usage = exchange.plan, exchange.target, exchange.usage
        which = (plan.route.model if plan is not None else "", str(target.version) if target is not None else "")
        sums = self._sums.get(which)
        if sums is None:
            sums = self._sums[which] = Sums()
        sums.statuses[exchange.status] += 1
        if target is None:
            return
        sums.total.add(exchange.total_ms / 1e3)
        if exchange.stream and exchange.ttft_ms is not None:
            sums.first_token.add(exchange.ttft_ms / 1e3)
            sums.streams += 1
        if usage is not None:
            sums.prompt += usage.prompt_tokens
            sums.completion += usage.completion_tokens
            sums.has_usage = True

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        requests = CounterMetricFamily(
            "tuneloop_requests", "requests by outcome; 499: the client left", labels=(*_LABELS, "status")
        )
        seconds = HistogramMetricFamily("tuneloop_request_seconds", "arrival to the end of the answer", labels=_LABELS)
        first_token = HistogramMetricFamily(
            "tuneloop_time_to_first_token_seconds", "arrival to the first event of a stream", labels=_LABELS
        )
        tokens = CounterMetricFamily("tuneloop_tokens", "tokens read and written", labels=(*_LABELS, "kind"))
        for which, sums in list(self._sums.items()):
            for status, count in list(sums.statuses.items()):
                requests.add_metric((*which, str(status)), count)
            if which[1]:
                seconds.add_metric(which, sums.total.buckets(), sums.total.sum)
            if sums.streams:
                first_token.add_metric(which, sums.first_token.buckets(), sums.first_token.sum)
            if sums.has_usage:
                tokens.add_metric((*which, "prompt"), sums.prompt)
                tokens.add_metric((*which, "completion"), sums.completion)
        return requests, seconds, first_token, tokens
