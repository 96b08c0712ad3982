"""What every request counts, as plain numbers that Prometheus' types are made of only when it asks.

A child of a Prometheus metric takes a lock and checks its labels for each number: of the ten that a request counts that
is more than what is counted is worth. The event loop alone writes here; whoever asks may see a request half counted.
Series are there from the view on that brings their engine or version, and `bounds` says how long they stay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tuneloop.registry.nouns import ApiKey, parse_version_name
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.bounds import MOST_OWNERS, MOST_VERSIONS_GONE, OTHER, kept
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.snapshot import Snapshot, Target
from tuneloop.serve.gateway.upstream import FAULTS, Fault

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_LABELS = ("model", "version")
_BOUNDS = (*map(floatToGoString, SECONDS), "+Inf")
_CLASSES = ("2xx", "4xx", "429", "499", "5xx")  # there from an owner's first request on, at 0
Which = tuple[str, str]  # model and version; the version is empty where no engine was asked, the model if none is known


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

    def show(self, histogram: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        """Add it as Prometheus has them (bound → how many are not above it), if there is anything."""
        counts = list(accumulate(self.counts))
        if counts[-1]:
            histogram.add_metric(labels, list(zip(_BOUNDS, map(float, counts), strict=True)), self.sum)


@dataclass(slots=True)
class Sums:
    """Of one model and version."""

    statuses: Counter[int] = field(default_factory=Counter)
    total: Times = field(default_factory=Times)
    prompt: int = 0
    completion: int = 0
    has_usage: bool = False


@dataclass(slots=True)
class Slot:
    """Of one version on one engine."""

    labels: tuple[str, str, str]  # model, version, engine
    sums: Sums  # the version's
    first_token: Times = field(default_factory=Times)
    between: Times = field(default_factory=Times)
    queued: Times = field(default_factory=Times)
    failures: dict[Fault, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))


@dataclass(slots=True)
class Owner:
    """Of all keys of one owner."""

    statuses: Counter[int] = field(default_factory=Counter)
    streams: int = 0
    first_token_s: float = 0.0  # of all streams together: buckets for each of 200 owners would be 3,000 series
    used: dict[str, list[int]] = field(default_factory=dict)  # model → tokens read and written


class Tally(Collector):
    """Counts requests by model and version, times and failures by engine too, and what the owners of keys use."""

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        self._sums: dict[Which, Sums] = {}
        self._slots: dict[str, Slot] = {}
        self._owner_of: dict[str, str] = {}  # key → owner; of keys that are gone the last ones
        self._living: set[str] = set()  # owners
        self._owners: dict[str, Owner] = {}
        self._others = Owner()
        self._by_key: dict[str, Owner] = {}  # what was looked up since the last view
        self._prices = prices or {}

    def finished(self, exchange: Exchange) -> None:
        """Count one request."""
        target, status, key = exchange.target, exchange.status, exchange.api_key
        owner = None
        if key is not None:
            owner = self._by_key.get(key) or self._owner(key)
            owner.statuses[status] += 1
        if target is None:
            plan = exchange.plan
            self._sums_of((plan.route.model if plan is not None else "", "")).statuses[status] += 1
            return
        slot = self._slots.get(target.slot) or self._slot(target)
        sums = slot.sums
        sums.statuses[status] += 1
        sums.total.add(exchange.total_ms / 1e3)
        if exchange.queue_ms is not None:
            slot.queued.add(exchange.queue_ms / 1e3)
        if exchange.stream and exchange.ttft_ms is not None:
            first_token_s = exchange.ttft_ms / 1e3
            slot.first_token.add(first_token_s)
            if owner is not None:
                owner.streams += 1
                owner.first_token_s += first_token_s
        if (usage := exchange.usage) is not None:
            sums.prompt += usage.prompt_tokens
            sums.completion += usage.completion_tokens
            sums.has_usage = True
            if owner is not None:
                used = owner.used.get(slot.labels[0])
                if used is None:
                    used = owner.used[slot.labels[0]] = [0, 0]
                used[0] += usage.prompt_tokens
                used[1] += usage.completion_tokens

    def failed(self, target: Target, fault: Fault) -> None:
        """Count one attempt that an engine failed, whatever became of the request elsewhere."""
        (self._slots.get(target.slot) or self._slot(target)).failures[fault] += 1

    def between(self, target: Target) -> Times:
        """Where the times between two events of a stream from there are counted."""
        return (self._slots.get(target.slot) or self._slot(target)).between

    def applies(self, keys: Iterable[ApiKey]) -> None:
        """Learn whose the keys are; one that is gone is its owner's still. An owner that is gone makes room."""
        owner_of = {key.id: key.owner for key in keys}
        known = self._owner_of | owner_of
        self._owner_of = {key: known[key] for key in kept(known, owner_of)}
        self._living = set(owner_of.values())
        owners = kept(self._owners, (owner for owner in self._owners if owner in self._living))
        self._owners = {owner: self._owners[owner] for owner in owners}
        self._by_key = {}

    def keeps(self, snapshot: Snapshot, engines: Collection[str]) -> list[Which]:
        """Make the series of what a view can send to, and forget those of all engines but these; of versions that no
        route names the `MOST_VERSIONS_GONE` that left last stay. The versions forgotten."""
        for targets in snapshot.targets.values():
            for target in targets:
                if target.slot not in self._slots:
                    self._slot(target)
        named = {("", "")}
        for model, route in snapshot.routes.items():
            named |= {(model, ""), *((model, str(arm.version)) for arm in route.arms)}
        known = self._sums
        staying = kept(known, (which for which in known if which in named), MOST_VERSIONS_GONE)
        self._sums = {which: known[which] for which in staying}
        self._slots = {
            name: slot
            for name, slot in self._slots.items()
            if slot.labels[2] in engines and slot.labels[:2] in self._sums
        }
        return [which for which in known if which not in staying]

    def _sums_of(self, which: Which) -> Sums:
        sums = self._sums.get(which)
        if sums is None:
            sums = self._sums[which] = Sums()
        return sums

    def _slot(self, target: Target) -> Slot:
        """A new one."""
        model, _ = parse_version_name(target.name)
        version = str(target.version)
        slot = self._slots[target.slot] = Slot((model, version, target.engine), self._sums_of((model, version)))
        return slot

    def _owner(self, key: str) -> Owner:
        """Looked up, for the next time too."""
        name = self._owner_of.get(key, OTHER)
        owner = self._others if name == OTHER else self._owners.get(name)
        if owner is None:
            if len(self._owners) >= MOST_OWNERS:
                gone = next((one for one in self._owners if one not in self._living), None)
                if gone is not None:
                    del self._owners[gone]
            if len(self._owners) < MOST_OWNERS:
                owner = self._owners[name] = Owner()
            else:
                owner = self._others
        self._by_key[key] = owner
        return owner

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        yield from self._by_version()
        yield from self._by_engine()
        yield from self._by_owner()

    def _by_version(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "tuneloop_requests", "requests by outcome; 499: the client left", labels=(*_LABELS, "status")
        )
        seconds = HistogramMetricFamily("tuneloop_request_seconds", "arrival to the end of the answer", labels=_LABELS)
        tokens = CounterMetricFamily("tuneloop_tokens", "tokens read and written", labels=(*_LABELS, "kind"))
        for which, sums in list(self._sums.items()):
            for status, count in list(sums.statuses.items()):
                requests.add_metric((*which, str(status)), count)
            sums.total.show(seconds, which)
            if sums.has_usage:
                tokens.add_metric((*which, "prompt"), sums.prompt)
                tokens.add_metric((*which, "completion"), sums.completion)
        return requests, seconds, tokens

    def _by_engine(self) -> Iterable[Metric]:
        labels = (*_LABELS, "engine")
        first_token = HistogramMetricFamily(
            "tuneloop_time_to_first_token_seconds", "arrival to the first event of a stream", labels=labels
        )
        between = HistogramMetricFamily("tuneloop_inter_token_seconds", "between two events of a stream", labels=labels)
        queue = HistogramMetricFamily(
            "tuneloop_engine_queue_seconds",
            "arrival until sent to the engine: limits, turn, guards, attempts before",
            labels=labels,
        )
        failures = CounterMetricFamily(
            "tuneloop_engine_failures", "attempts that an engine failed, retried or not", labels=(*labels, "kind")
        )
        for slot in list(self._slots.values()):
            slot.first_token.show(first_token, slot.labels)
            slot.between.show(between, slot.labels)
            slot.queued.show(queue, slot.labels)
            for fault, count in slot.failures.items():
                failures.add_metric((*slot.labels, fault), count)
        return first_token, between, queue, failures

    def _by_owner(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "tuneloop_owner_requests", "requests of an owner's keys by outcome", labels=("owner", "status")
        )
        first_token = SummaryMetricFamily(
            "tuneloop_owner_time_to_first_token_seconds", "of streams of an owner's keys", labels=("owner",)
        )
        tokens = CounterMetricFamily("tuneloop_owner_tokens", "tokens of an owner's keys", labels=("owner", "kind"))
        spent = CounterMetricFamily(
            "tuneloop_owner_spent_usd", "what an owner's keys spent, of models with a price", labels=("owner",)
        )
        for name, owner in [*self._owners.items(), (OTHER, self._others)]:
            classes = Counter(dict.fromkeys(_CLASSES if owner.statuses else (), 0))
            for status, count in list(owner.statuses.items()):
                classes[_class(status)] += count
            for status_class, count in classes.items():
                requests.add_metric((name, status_class), count)
            if owner.streams:
                first_token.add_metric((name,), owner.streams, owner.first_token_s)
            used = list(owner.used.items())
            if used:
                tokens.add_metric((name, "prompt"), sum(read for _, (read, _) in used))
                tokens.add_metric((name, "completion"), sum(written for _, (_, written) in used))
            usd = [self._prices[model].of(read, written) for model, (read, written) in used if model in self._prices]
            if usd:
                spent.add_metric((name,), float(sum(usd, Decimal())))
        return requests, first_token, tokens, spent


def _class(status: int) -> str:
    """2xx, 4xx or 5xx; what limits refuse (429) and who leaves (499) are told apart."""
    return str(status) if status in {429, 499} else f"{status // 100}xx"
