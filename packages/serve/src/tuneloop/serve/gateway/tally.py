"""What every request counts, as plain numbers that Prometheus' types are made of only when it asks.

A child of a Prometheus metric takes a lock and checks its labels for each number: of the six that a request counts that
is more than what is counted is worth. The event loop alone writes here; whoever asks may see a request half counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tuneloop.registry.nouns import ApiKey
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.snapshot import Target

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
MOST_OWNERS = 200  # with series of their own; the others' are summed up
OTHER = "(other)"
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
    """Counts requests by model and version, times by engine too, and tokens by the owners of keys."""

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        self._sums: dict[tuple[str, str], Sums] = {}
        self._between: dict[str, Times] = {}  # by slot
        self._queued: dict[tuple[str, str], Times] = {}  # by model and engine
        self._used: dict[tuple[str, str], list[int]] = {}  # by key and model: tokens read and written
        self._owners: dict[str, str] = {}
        self._prices = prices or {}

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
            who = (exchange.api_key or "", which[0])
            used = self._used.get(who)
            if used is None:
                used = self._used[who] = [0, 0]
            used[0] += usage.prompt_tokens
            used[1] += usage.completion_tokens
        if exchange.queue_ms is not None:
            where = (which[0], target.engine)
            queued = self._queued.get(where)
            if queued is None:
                queued = self._queued[where] = Times()
            queued.add(exchange.queue_ms / 1e3)

    def between(self, target: Target) -> Times:
        """Where the times between two events of a stream from there are counted."""
        times = self._between.get(target.slot)
        if times is None:
            times = self._between[target.slot] = Times()
        return times

    def applies(self, keys: Iterable[ApiKey]) -> None:
        """Learn whose the keys are; one that is gone is its owner's still."""
        self._owners |= {key.id: key.owner for key in keys}

    def keeps(self, engines: Collection[str]) -> None:
        """Forget the times of all other engines."""
        self._between = {slot: times for slot, times in self._between.items() if slot.partition("|")[0] in engines}
        self._queued = {which: times for which, times in self._queued.items() if which[1] in engines}

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        yield from self._by_version()
        yield from self._by_engine()
        yield from self._by_owner()

    def _by_engine(self) -> Iterable[Metric]:
        between = HistogramMetricFamily(
            "tuneloop_inter_token_seconds", "between two events of a stream", labels=(*_LABELS, "engine")
        )
        queue = HistogramMetricFamily(
            "tuneloop_engine_queue_seconds",
            "arrival until sent to the engine: limits, turn, guards, attempts before",
            labels=("model", "engine"),
        )
        for slot, times in list(self._between.items()):
            engine, _, name = slot.partition("|")
            model, _, version = name.rpartition("@")
            between.add_metric((model, version, engine), times.buckets(), times.sum)
        for which, times in list(self._queued.items()):
            queue.add_metric(which, times.buckets(), times.sum)
        return between, queue

    def _by_owner(self) -> Iterable[Metric]:
        tokens = CounterMetricFamily("tuneloop_owner_tokens", "tokens of an owner's keys", labels=("owner", "kind"))
        spent = CounterMetricFamily(
            "tuneloop_owner_spent_usd", "what an owner's keys spent, of models with a price", labels=("owner",)
        )
        used: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        money: defaultdict[str, Decimal] = defaultdict(Decimal)
        for (key, model), (prompt, completion) in list(self._used.items()):
            owner = self._owners.get(key, OTHER)
            if owner not in used and len(used) >= MOST_OWNERS:
                owner = OTHER
            used[owner][0] += prompt
            used[owner][1] += completion
            if (price := self._prices.get(model)) is not None:
                money[owner] += price.of(prompt, completion)
        for owner, (prompt, completion) in used.items():
            tokens.add_metric((owner, "prompt"), prompt)
            tokens.add_metric((owner, "completion"), completion)
        for owner, usd in money.items():
            spent.add_metric((owner,), float(usd))
        return tokens, spent

    def _by_version(self) -> Iterable[Metric]:
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
