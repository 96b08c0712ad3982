"""What requests count in plain numbers is shown as Prometheus' own types would show it."""

from __future__ import annotations

from decimal import Decimal

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from serve.gateway.test_snapshot import engine, view
from tuneloop.registry.nouns import AdapterState, ApiKey, Arm, Route, utc_now
from tuneloop.serve.gateway.admission.prices import Price
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.metrics import MOST_GONE, Metrics
from tuneloop.serve.gateway.routing import Plan
from tuneloop.serve.gateway.snapshot import Target
from tuneloop.serve.gateway.sse import Usage
from tuneloop.serve.gateway.tally import MOST_OWNERS, SECONDS, Tally

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
    assert 'tuneloop_engine_queue_seconds_bucket{engine="e1",le="0.025",model="bot"} 4.0' in shown(
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
            metrics.finished(exchange)
            metrics.between(exchange.target).add(0.02)
        sizes.append(len(metrics.text().splitlines()))
    assert max(sizes) == sizes[-1] == sizes[2 * MOST_GONE], "it grows until so many are gone, then no more"
    newest = [f"pod-{number:04}" for number in range(3 * MOST_GONE - 1, 4 * MOST_GONE)]
    assert shown(metrics.registry, "tuneloop_engine_ready{") == [
        f'tuneloop_engine_ready{{engine="{name}"}} {float(name == newest[-1])}' for name in newest
    ] + ['tuneloop_engine_ready{engine="stays"} 1.0']
    for name in ("tuneloop_inter_token_seconds_count", "tuneloop_engine_queue_seconds_count"):
        (stayed,) = [line for line in shown(metrics.registry, name) if 'engine="stays"' in line]
        assert stayed.endswith(f" {4.0 * MOST_GONE}"), "of one that lives nothing is forgotten"
