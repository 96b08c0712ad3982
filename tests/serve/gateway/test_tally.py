"""What requests count in plain numbers is shown as Prometheus' own types would show it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from tuneloop.registry.nouns import Arm, Route, utc_now
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.routing import Plan
from tuneloop.serve.gateway.snapshot import Target
from tuneloop.serve.gateway.sse import Usage
from tuneloop.serve.gateway.tally import SECONDS, Tally

ROUTE = Route(
    model="bot", revision=1, arms=(Arm(version=1, weight_bp=10_000),), salt="s", by="b", reason="r", at=utc_now()
)


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
