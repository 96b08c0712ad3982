"""What requests count in plain numbers is shown as Prometheus' own types would show it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from serve.gateway.test_snapshot import api_key, engine, route, view
from tuneloop.registry.nouns import AdapterState, ApiKey, Arm, Route, utc_now
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.bounds import MOST_GONE, MOST_KEYS, MOST_OWNERS, MOST_VERSIONS_GONE
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.metrics import Metrics
from tuneloop.serve.gateway.routing import Plan
from tuneloop.serve.gateway.snapshot import Target
from tuneloop.serve.gateway.sse import Usage
from tuneloop.serve.gateway.tally import SECONDS, Tally

ROUTE = Route(
    model="bot", revision=1, arms=(Arm(version=1, weight_bp=10_000),), salt="s", by="b", reason="r", at=utc_now()
)


def key_of(number: int, owner: str) -> ApiKey:
    return ApiKey(id=f"key_{number}", digest=f"d{number}", owner=owner, models=(), may_pin=False, created_at=utc_now())


def ended(seconds: float, status: int = 200, usage: Usage | None = None, *, asked: bool = True) -> Exchange:
    exchange = Exchange("chat", plan=Plan(ROUTE, 1, (1,)), status=status, usage=usage, total_ms=seconds * 1e3)
    exchange.target = Target(1, "bot@1", "e1", "http://e1") if asked else None
    return exchange


def shown(registry: CollectorRegistry, name: str) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if line.startswith(name) and "_created" not in line)


def values(registry: CollectorRegistry, name: str, label: str) -> dict[str, float]:
    """One label of a metric's series → the sum of their values."""
    found: dict[str, float] = {}
    for line in shown(registry, f"{name}{{"):
        value = re.search(rf'\b{label}="([^"]*)"', line)
        assert value is not None, line
        found[value[1]] = found.get(value[1], 0.0) + float(line.rpartition(" ")[2])
    return found


def test_times_fall_into_the_buckets_that_prometheus_own_histogram_has() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally()
    ours.register(tally)
    histogram = Histogram(
        "request_seconds", "", ("model", "version"), namespace="tuneloop", registry=theirs, buckets=SECONDS
    )
    for seconds in (0.0, 0.001, *SECONDS, *(bound * 1.5 for bound in SECONDS), 1e6):
        tally.finished(ended(seconds))
        histogram.labels("bot", "1").observe(seconds * 1e3 / 1e3)
    name = "tuneloop_request_seconds"
    assert shown(ours, name) == shown(theirs, name) != []


def test_requests_and_tokens_are_counted_by_what_became_of_them() -> None:
    registry, tally = CollectorRegistry(), Tally()
    registry.register(tally)
    for exchange in (ended(1.0, usage=Usage(3, 4)), ended(1.0, usage=Usage(5, 6)), ended(1.0, 502)):
        tally.finished(exchange)
    tally.finished(ended(1.0, 429, asked=False))
    assert shown(registry, "tuneloop_requests_total") == [
        'tuneloop_requests_total{model="bot",status="200",version="1"} 2.0',
        'tuneloop_requests_total{model="bot",status="429",version=""} 1.0',
        'tuneloop_requests_total{model="bot",status="502",version="1"} 1.0',
    ]
    assert shown(registry, "tuneloop_tokens_total") == [
        'tuneloop_tokens_total{kind="completion",model="bot",version="1"} 10.0',
        'tuneloop_tokens_total{kind="prompt",model="bot",version="1"} 8.0',
    ]
    assert shown(registry, "tuneloop_request_seconds_count") == [
        'tuneloop_request_seconds_count{model="bot",version="1"} 3.0'
    ]


def test_times_are_told_by_engine_and_spending_by_owner_at_the_prices_in_force() -> None:
    price = Price(prompt_usd_per_million=Decimal(1_000_000), completion_usd_per_million=Decimal(2_000_000))
    registry, tally = CollectorRegistry(), Tally({"bot": price})
    registry.register(tally)
    tally.applies([key_of(1, "team-a"), key_of(2, "team-a"), key_of(3, "team-b")])
    for number in (1, 2, 3, 4):
        exchange = ended(1.0, usage=Usage(3, 4))
        exchange.api_key, exchange.queue_ms = f"key_{number}", 20.0
        tally.finished(exchange)
        assert exchange.target is not None
        tally.between(exchange.target).add(0.02)
    tally.applies([])  # a key that is gone is its owner's still
    assert shown(registry, "tuneloop_owner_spent_usd_total") == [
        f'tuneloop_owner_spent_usd_total{{owner="{owner}"}} {usd}'
        for owner, usd in (("(other)", 11.0), ("team-a", 22.0), ("team-b", 11.0))
    ]
    assert 'tuneloop_owner_tokens_total{kind="completion",owner="team-a"} 8.0' in shown(registry, "tuneloop_owner_t")
    assert 'tuneloop_engine_queue_seconds_bucket{engine="e1",le="0.025",model="bot",version="1"} 4.0' in shown(
        registry, "tuneloop_engine_queue_seconds_bucket"
    )
    assert shown(registry, "tuneloop_inter_token_seconds_count") == [
        'tuneloop_inter_token_seconds_count{engine="e1",model="bot",version="1"} 4.0'
    ]


def test_owners_beyond_a_bound_are_summed_up() -> None:
    registry, tally = CollectorRegistry(), Tally()
    registry.register(tally)
    tally.applies([key_of(number, f"team-{number}") for number in range(2 * MOST_OWNERS)])
    for number in range(2 * MOST_OWNERS):
        exchange = ended(1.0, usage=Usage(1, 0))
        exchange.api_key = f"key_{number}"
        tally.finished(exchange)
    lines = shown(registry, 'tuneloop_owner_tokens_total{kind="prompt"')
    assert len(lines) == MOST_OWNERS + 1
    assert sum(float(line.rpartition(" ")[2]) for line in lines) == 2 * MOST_OWNERS


def test_engines_that_come_and_go_by_ever_new_names_leave_a_bounded_trace_and_the_last_are_seen_to_be_gone() -> None:
    metrics, sizes = Metrics(), []
    for number in range(4 * MOST_GONE):
        fleet = ("stays", f"pod-{number:04}")
        metrics.applies(view(*(engine(name, v1=AdapterState.READY) for name in fleet)))
        for name in fleet:
            exchange = ended(1.0)
            exchange.queue_ms, exchange.target = 20.0, Target(1, "bot@1", name, "http://e")
            exchange.stream, exchange.ttft_ms = True, 30.0
            metrics.finished(exchange)
            metrics.engine_failed(exchange.target, "lost")
            metrics.between(exchange.target).add(0.02)
        if number % 8 == 7:
            sizes.append(len(metrics.text().splitlines()))
    assert max(sizes) == sizes[-1] == sizes[2 * MOST_GONE // 8], "it grows until so many are gone, then no more"
    newest = [f"pod-{number:04}" for number in range(3 * MOST_GONE - 1, 4 * MOST_GONE)]
    assert shown(metrics.registry, "tuneloop_engine_ready{") == [
        f'tuneloop_engine_ready{{engine="{name}"}} {float(name == newest[-1])}' for name in newest
    ] + ['tuneloop_engine_ready{engine="stays"} 1.0']
    for name in (
        "tuneloop_inter_token_seconds_count",
        "tuneloop_engine_queue_seconds_count",
        "tuneloop_time_to_first_token_seconds_count",
        "tuneloop_engine_failures_total",
    ):
        found = values(metrics.registry, name, "engine")
        assert found.keys() == {*newest, "stays"}, name
        assert found["stays"] == 4.0 * MOST_GONE, "of one that lives nothing is forgotten"
    assert values(metrics.registry, "tuneloop_adapter_changes_total", "engine").keys() == {*newest, "stays"}


def test_an_engines_failures_are_there_at_0_before_it_is_asked_and_count_whoever_answers_then() -> None:
    metrics = Metrics()
    metrics.applies(view(engine("e1", v1=AdapterState.READY), engine("e2", v1=AdapterState.READY)))
    name = "tuneloop_engine_failures_total"
    assert values(metrics.registry, name, "engine") == {"e1": 0.0, "e2": 0.0}
    metrics.engine_failed(Target(1, "bot@1", "e1", "http://e1"), "timeout")
    answered = ended(1.0)
    answered.target = Target(1, "bot@1", "e2", "http://e2")
    metrics.finished(answered)
    assert values(metrics.registry, name, "engine") == {"e1": 1.0, "e2": 0.0}
    assert values(metrics.registry, name, "kind")["timeout"] == 1.0


def test_an_owners_requests_count_by_what_became_of_them_also_where_no_engine_was_asked() -> None:
    registry, tally = CollectorRegistry(), Tally()
    registry.register(tally)
    tally.applies([key_of(1, "team-a"), key_of(2, "team-a")])
    for number, status in enumerate((200, 201, 400, 403, 429, 429, 499, 502, 503)):
        exchange = ended(1.0, status, asked=status in {200, 201, 502})
        exchange.api_key = f"key_{number % 2 + 1}"
        exchange.stream, exchange.ttft_ms = status in {200, 201}, 250.0 * (number + 1)
        tally.finished(exchange)
    tally.finished(ended(1.0, 401, asked=False))  # nobody's
    assert values(registry, "tuneloop_owner_requests_total", "owner") == {"team-a": 9.0}
    assert values(registry, "tuneloop_owner_requests_total", "status") == {
        "2xx": 2.0,
        "4xx": 2.0,
        "429": 2.0,
        "499": 1.0,
        "5xx": 2.0,
    }
    assert shown(registry, "tuneloop_owner_time_to_first_token_seconds") == [
        'tuneloop_owner_time_to_first_token_seconds_count{owner="team-a"} 2.0',
        'tuneloop_owner_time_to_first_token_seconds_sum{owner="team-a"} 0.75',
    ]


def test_owners_that_come_and_go_leave_a_bounded_trace_and_room_for_others() -> None:
    registry, tally = CollectorRegistry(), Tally()
    registry.register(tally)
    for number in range(2 * MOST_OWNERS):
        tally.applies([key_of(0, "stays"), key_of(number + 1, f"team-{number}")])
        for key in ("key_0", f"key_{number + 1}"):
            exchange = ended(1.0)
            exchange.api_key = key
            tally.finished(exchange)
    found = values(registry, "tuneloop_owner_requests_total", "owner")
    newest = {f"team-{number}" for number in range(2 * MOST_OWNERS - MOST_GONE - 1, 2 * MOST_OWNERS)}
    assert found == {"stays": 2.0 * MOST_OWNERS} | dict.fromkeys(newest, 1.0)


def test_versions_that_no_route_names_leave_a_bounded_trace() -> None:
    metrics = Metrics()
    last = 3 * MOST_VERSIONS_GONE
    for version in range(1, last + 1):
        arms = ((version, 9_000), (1_000, 1_000))
        able = {f"v{number}": AdapterState.READY for number, _ in arms}
        metrics.applies(view(engine("e1", **able), routes=(route(*arms),)))
        for number, _ in arms:
            exchange = ended(1.0, usage=Usage(1, 1))
            exchange.target = Target(number, f"bot@{number}", "e1", "http://e1")
            exchange.queue_ms = 0.0
            metrics.finished(exchange)
            metrics.shadow_finished(exchange)
        metrics.finished(ended(1.0, 429, asked=False))
    staying = {str(version) for version in range(last - MOST_VERSIONS_GONE, last + 1)} | {"1000"}
    for name in (
        "tuneloop_request_seconds_count",
        "tuneloop_engine_queue_seconds_count",
        "tuneloop_engine_failures_total",
        "tuneloop_shadow_requests_total",
        "tuneloop_shadow_seconds_count",
    ):
        assert values(metrics.registry, name, "version").keys() == staying, name
    requests = values(metrics.registry, "tuneloop_requests_total", "version")
    assert requests == dict.fromkeys(staying, 1.0) | {"1000": last, "": last}, "of what stays nothing is forgotten"


def test_keys_that_a_limit_refuses_leave_a_bounded_trace() -> None:
    metrics = Metrics()
    living = tuple(api_key(f"living-{number:03}") for number in range(2 * MOST_KEYS))
    metrics.applies(view(keys=living))
    for key in living:
        metrics.limited(key.id, "requests")
        metrics.limited(key.id, "owner_tokens")
    found = values(metrics.registry, "tuneloop_limited_requests_total", "key")
    assert found == {key.id: 2.0 for key in living[:MOST_KEYS]} | {"(other)": 2.0 * MOST_KEYS}
    metrics.applies(view(keys=living[:10]))
    found = values(metrics.registry, "tuneloop_limited_requests_total", "key")
    staying = (*living[:10], *living[MOST_KEYS - MOST_GONE : MOST_KEYS])
    assert found == {key.id: 2.0 for key in staying} | {"(other)": 2.0 * MOST_KEYS}
    metrics.limited(living[-1].id, "streams")  # there is room now
    assert values(metrics.registry, "tuneloop_limited_requests_total", "key")[living[-1].id] == 1.0


def test_whoever_is_gone_makes_room_for_who_lives() -> None:
    metrics = Metrics()

    def asks(keys: Sequence[ApiKey]) -> None:
        for key in keys:
            metrics.limited(key.id, "requests")
            exchange = ended(1.0)
            exchange.api_key = key.id
            metrics.finished(exchange)

    first = tuple(api_key(f"{number:03}", owner=f"team-{number:03}") for number in range(MOST_KEYS))
    metrics.applies(view(keys=first))
    asks(first)
    more = tuple(api_key(f"more-{number:03}", owner=f"more-{number:03}") for number in range(MOST_GONE + 1))
    metrics.applies(view(keys=(*first[MOST_GONE:], *more)))
    asks(more)
    staying = (*first[MOST_GONE:], *more[:-1])
    keys = values(metrics.registry, "tuneloop_limited_requests_total", "key")
    assert keys == {key.id: 1.0 for key in staying} | {"(other)": 1.0}
    owners = values(metrics.registry, "tuneloop_owner_requests_total", "owner")
    assert owners == {key.owner: 1.0 for key in staying} | {"(other)": 1.0}
