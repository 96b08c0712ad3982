"""What Prometheus reads from a gateway; one registry per gateway, so several may live in one process.

Label values are those that the registry knows, keys by their ids, and `bounds` says how many of them have series.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tuneloop.serve.gateway.admission.admission import Admission
from tuneloop.serve.gateway.admission.limits import Told
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.admission.turns import Shed
from tuneloop.serve.gateway.bounds import MOST_KEYS, OTHER, kept
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.look import PARTS
from tuneloop.serve.gateway.snapshot import Snapshot
from tuneloop.serve.gateway.swaps import Swaps
from tuneloop.serve.gateway.tally import SECONDS, Tally


class Metrics:
    """Every series of one gateway."""

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        self.registry = CollectorRegistry()
        self._tally = Tally(prices)
        self.registry.register(self._tally)
        self.finished = self._tally.finished  # counts one request
        self.engine_failed = self._tally.failed  # counts one attempt
        self.between = self._tally.between  # counts the times between events
        self._swaps = Swaps()
        self.registry.register(self._swaps)
        self._retries = self._counter("retries", "second attempts", ("model",))
        self.spans_dropped = self._counter("spans_dropped", "requests whose spans the collector did not take")
        self.records_spooled = self._counter(
            "records_spooled", "records and feedback put on disk: the database was away"
        )
        self.records_aside = self._counter(
            "records_aside", "spooled records and feedback that cannot be read or stored, kept beside the spool"
        )
        self.records_dropped = self._counter(
            "records_dropped", "records lost: queue full, or disk and database refused"
        )
        self.records_without_text = self._counter(
            "records_without_text", "records stored without text: redaction failed, or too many waited for it"
        )
        self._guard_findings = self._counter(
            "guard_findings",
            "requests in which a guard found something, by the gravest action",
            ("model", "where", "guard", "action"),
        )
        self._guard_failures = self._counter(
            "guard_failures",
            "texts that could not be judged, and what the policy does then",
            ("model", "where", "cause", "fail"),
        )
        self._guard_seconds = self._histogram("guard_seconds", "judging what comes in", ("model",))
        self._shadow_requests = self._counter(
            "shadow_requests",
            "copies that a shadow was sent and that were recorded, by outcome",
            ("model", "version", "status"),
        )
        self._shadow_seconds = self._histogram(
            "shadow_seconds", "of a copy's engine, to the end of its answer", ("model", "version")
        )
        self._shadow_dropped = self._counter(
            "shadow_dropped",
            "copies that were not sent or not recorded, so as to stay behind requests",
            ("model", "reason"),
        )
        self._limited = self._counter(
            "limited_requests", "requests refused by a limit of their key or its owner", ("key", "limit")
        )
        self._shed = self._counter("shed_requests", "requests refused because too many waited", ("reason",))
        self._queue_seconds = Histogram(
            "queue_seconds", "time of those that waited", namespace="tuneloop", registry=self.registry, buckets=SECONDS
        )
        self._at_once = self._gauge("requests_in_flight", "requests that have their turn at the engines")
        self._waiting = self._gauge("requests_waiting", "requests that wait for their turn")
        self._gateways = self._gauge("limits_gateways", "gateways that share the limits of keys, this one included")
        self._limits_shared = self._gauge(
            "limits_shared", "1 when parts of limits are agreed with the other gateways, 0: an even share each"
        )
        self._revision = self._gauge("route_revision", "the route revision this gateway applies", ("model",))
        self._engine_ready = self._gauge("engine_ready", "1 when the engine is live and ready", ("engine",))
        self._pending = self._gauge("records_pending", "records waiting in memory")
        self._registry_up = self._gauge("registry_up", "1 when the last reads of the database gave every part")
        self._view_unsaved = self._gauge(
            "view_unsaved", "1 when the view in force cannot be kept on disk: a restart finds an older one"
        )
        self._part_failures = self._counter(
            "registry_part_failures", "reads that left a part of the registry as it was known last", ("part",)
        )
        for part in PARTS:
            self._part_failures.labels(part)  # there from the start, at 0: an increase can be told from a first sight
        self._engines: dict[str, None] = {}  # those that live and some that are gone, in the order they were seen last
        self._limited_keys: dict[str, None] = {}  # the same, of those that have series
        self._usable: frozenset[str] = frozenset()  # keys, by id

    def watch(
        self, *, pending: Callable[[], int], registry_up: Callable[[], bool], view_unsaved: Callable[[], bool]
    ) -> None:
        """Where gauges are read from when Prometheus asks."""
        self._pending.set_function(pending)
        self._registry_up.set_function(lambda: float(registry_up()))
        self._view_unsaved.set_function(lambda: float(view_unsaved()))

    def watch_admission(self, admission: Admission) -> None:
        """Where its gauges are read from."""
        self._at_once.set_function(lambda: admission.turns.at_once)
        self._waiting.set_function(lambda: admission.turns.waiting)
        self._limits_shared.set_function(lambda: float(admission.is_shared))
        self._gateways.set_function(lambda: admission.gateways)

    def limited(self, key: str, limit: Told) -> None:
        """Count one request that a limit of its key refused; `MOST_KEYS` have series, the others one together."""
        if key not in self._limited_keys:
            if len(self._limited_keys) >= MOST_KEYS:
                gone = next((one for one in self._limited_keys if one not in self._usable), None)
                if gone is not None:
                    del self._limited_keys[gone]
                    self._limited.remove_by_labels({"key": gone})
            if len(self._limited_keys) < MOST_KEYS:
                self._limited_keys[key] = None
            else:
                key = OTHER
        self._limited.labels(key, limit).inc()

    def shed(self, reason: Shed) -> None:
        """Count one request that could not wait."""
        self._shed.labels(reason).inc()

    def waited(self, seconds: float) -> None:
        """Note how long a request waited for its turn."""
        self._queue_seconds.observe(seconds)

    def shadow_finished(self, exchange: Exchange) -> None:
        """Count one copy; it is none of the requests."""
        assert exchange.plan is not None
        assert exchange.target is not None
        assert exchange.queue_ms is not None
        model, version = exchange.plan.route.model, str(exchange.target.version)
        self._shadow_requests.labels(model, version, str(exchange.status)).inc()
        self._shadow_seconds.labels(model, version).observe((exchange.total_ms - exchange.queue_ms) / 1e3)

    def shadow_dropped(self, model: str, reason: str) -> None:
        """Count one copy that was not sent, or that says nothing about its version."""
        self._shadow_dropped.labels(model, reason).inc()

    def guarded(self, model: str, where: str, guard: str, action: str) -> None:
        """Count one request in which a guard found something, in its `input` or its `output`."""
        self._guard_findings.labels(model, where, guard, action).inc()

    def guard_failed(self, model: str, where: str, cause: str, fail: str) -> None:
        """Count texts that could not be judged: the `queue` was full, the `deadline` passed, or the `worker` failed."""
        self._guard_failures.labels(model, where, cause, fail).inc()

    def guard_took(self, model: str, seconds: float) -> None:
        """Note how long judging a request took."""
        self._guard_seconds.labels(model).observe(seconds)

    def retried(self, model: str) -> None:
        """Count one second attempt."""
        self._retries.labels(model).inc()

    def applies(self, snapshot: Snapshot, *, after_gap: bool = False) -> None:
        """Show a new view; of what is gone those that left last stay, engines at 0. What changed `after_gap`, a time in
        which nothing was read, changed at no known time, if since this gateway began."""
        for model, revision in snapshot.applied.items():
            self._revision.labels(model).set(revision)
        engines = kept(self._engines, (engine.id for engine in snapshot.engines))
        for engine in self._engines.keys() - engines.keys():
            self._engine_ready.remove(engine)
        self._engines = engines
        ready = {engine.id for engine in snapshot.engines if engine.state == "ready"}
        for engine in engines:
            self._engine_ready.labels(engine).set(engine in ready)
        self._swaps.applies(snapshot.engines, engines, after_gap=after_gap)
        self._tally.applies(snapshot.keys)
        self._forget_versions(self._tally.keeps(snapshot, engines))
        self._forget_keys(snapshot)

    def _forget_versions(self, versions: Collection[tuple[str, str]]) -> None:
        """Of copies; the tally has forgotten the rest."""
        for model, version in versions:
            for metric in (self._shadow_requests, self._shadow_seconds):
                metric.remove_by_labels({"model": model, "version": version})

    def _forget_keys(self, snapshot: Snapshot) -> None:
        """Keys that are gone make room for others."""
        self._usable = frozenset(key.id for key in snapshot.keys)
        keys = kept(self._limited_keys, (key for key in self._limited_keys if key in self._usable))
        for key in self._limited_keys.keys() - keys.keys():
            self._limited.remove_by_labels({"key": key})
        self._limited_keys = keys

    def part_failed(self, part: str) -> None:
        """Count one reading that could not renew a part of the view."""
        self._part_failures.labels(part).inc()

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, what, labels, namespace="tuneloop", registry=self.registry)

    def _gauge(self, name: str, what: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, what, labels, namespace="tuneloop", registry=self.registry)

    def _histogram(self, name: str, what: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(name, what, labels, namespace="tuneloop", registry=self.registry, buckets=SECONDS)
