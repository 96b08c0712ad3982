"""Limits of keys through a real gateway: what is refused, what a client is told, what is given back, what is kept."""

from __future__ import annotations

import sqlite3
import threading
import time
from decimal import Decimal
from typing import Any

import pytest

from serve.gateway.test_clients_that_leave import connect
from serve.gateway.world import Address, Got, World, until
from tuneloop.registry.access.limits import KeyLimits
from tuneloop.registry.guard_policy import GuardPolicy
from tuneloop.registry.nouns import ApiKey
from tuneloop.serve.gateway.admission.prices import Price

PRICES = {"bot": Price(prompt_usd_per_million=Decimal(1_000), completion_usd_per_million=Decimal(10_000))}


def limited(world: World, gateway: Address, **limits: Any) -> tuple[Address, ApiKey]:
    """The gateway as a new key with these limits sees it."""
    secret, key = world.registry.keys.new("team-a", by="test", limits=KeyLimits(**limits))
    seen = Address(gateway.url, secret)
    until(lambda: seen.call("/v1/models").status == 200)
    return seen, key


def serving(world: World, **settings: Any) -> Address:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    return world.gateway(**settings)


def wait_for(gateway: Address, waiting: int) -> None:
    until(lambda: gateway.metric("tuneloop_requests_waiting") == waiting)


def refused(got: Got, code: str = "rate_limit_exceeded") -> int:
    """Its Retry-After."""
    assert (got.status, got.error["code"]) == (429, code), got.body
    return int(got.headers["retry-after"])


def test_requests_beyond_a_minutes_limit_are_refused_and_the_client_is_told_what_is_left(world: World) -> None:
    gateway = serving(world)
    mine, key = limited(world, gateway, requests_per_minute=3)
    left = [mine.chat().headers["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]
    got = mine.chat()
    assert 50 <= refused(got) <= 61
    assert "3 requests a minute" in got.error["message"]
    assert got.headers["x-ratelimit-limit-requests"] == "3"
    assert got.headers["x-ratelimit-reset-requests"] in {f"{s}s" for s in range(50, 60)} | {"1m0s", "1m1s"}
    assert "x-ratelimit-limit-tokens" not in got.headers
    assert gateway.metric(f'tuneloop_limited_requests_total{{key="{key.id}",limit="requests"}}') == 1
    counted = 'tuneloop_owner_requests_total{owner="team-a",status="%s"}'
    until(lambda: (gateway.metric(counted % "2xx"), gateway.metric(counted % "429")) == (3, 1))
    assert "x-ratelimit-limit-requests" not in gateway.chat().headers  # a key without limits is told of none
    world.registry.keys.limit(key.id, lambda _: KeyLimits(requests_per_minute=5), by="test")
    until(lambda: mine.chat().status == 200, 3)


def test_what_the_guards_refuse_counts_as_a_request_and_gives_its_tokens_back(world: World) -> None:
    gateway = serving(world)
    world.registry.policies.set("bot", GuardPolicy(banned_parameters=("logit_bias",)), by="test", reason="test")
    mine, _ = limited(world, gateway, requests_per_minute=2, tokens_per_minute=1_000)
    until(lambda: gateway.chat(logit_bias={"1": 1}).status == 400)  # the policy is in force
    got = mine.chat(logit_bias={"1": 1}, max_tokens=900)
    assert (got.status, got.error["code"]) == (400, "guard_blocked")
    got = mine.chat(max_tokens=900)
    assert (got.status, got.headers["x-ratelimit-remaining-requests"]) == (200, "0")


def test_tokens_are_reserved_and_settled_with_the_engines_count(world: World) -> None:
    gateway = serving(world)
    mine, _ = limited(world, gateway, tokens_per_minute=1_000)
    first = mine.chat(max_tokens=800)
    reserved = 1_000 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert 800 < reserved < 850
    used = first.json["usage"]["prompt_tokens"] + first.json["usage"]["completion_tokens"]
    second = mine.chat(max_tokens=800)  # what the first did not use is free again
    assert int(second.headers["x-ratelimit-remaining-tokens"]) == 1_000 - used - reserved
    got = mine.chat(max_tokens=2_000)
    assert (got.status, got.error["code"], "lower max_tokens" in got.error["message"]) == (
        429,
        "rate_limit_exceeded",
        True,
    )
    assert mine.chat(max_tokens=0).status == 400  # refused for what it is, and nothing is taken for it
    assert mine.chat(model="nobody").status == 404


def test_no_more_requests_at_once_than_allowed_and_one_that_ends_makes_room(world: World) -> None:
    engine = world.engine("e1", "bot@1", fault="never_answers")
    world.route((1, 10_000))
    mine, _ = limited(world, world.gateway(), streams=2, requests_per_minute=100)
    clients = [connect(mine, stream=True) for _ in range(2)]
    until(lambda: engine.at_work == 2)
    assert refused(mine.chat()) >= 1
    clients[0].close()
    until(lambda: engine.left == 1)
    engine.fault = "none"
    assert until(lambda: (got := mine.chat()).status == 200 and got).headers["x-ratelimit-remaining-requests"]
    clients[1].close()


def test_a_months_budget_is_kept_over_a_restart_and_a_model_without_a_price_is_not_asked(world: World) -> None:
    gateway = serving(world, prices=PRICES)
    mine, key = limited(world, gateway, budget_usd_per_month=Decimal("0.5"))
    paid = mine.chat(max_tokens=20).json["usage"]
    cost = PRICES["bot"].of(paid["prompt_tokens"], paid["completion_tokens"])
    asked = 1
    while (got := mine.chat(max_tokens=20)).status == 200:
        asked += 1
        assert asked < 20, "the budget never ends"
    assert refused(got, "insufficient_quota") > 0
    assert asked * cost <= Decimal("0.5") < asked * cost + Decimal("0.25")  # a request may take 0.23
    until(lambda: [u.requests for u in world.registry.usage.month(world.registry.clock(), keys=[key.id])] == [asked])
    again = Address(world.gateway(id="gw2", prices=PRICES).url, mine.key)
    until(lambda: again.chat(max_tokens=20).status == 429)
    without = Address(world.gateway(id="gw3").url, mine.key)
    got = without.chat()
    assert (got.status, got.error["code"]) == (403, "model_without_price")


def test_a_stream_that_is_left_before_its_usage_came_is_counted_by_what_was_sent(world: World) -> None:
    engine = world.engine("e1", "bot@1", pause_s=0.02, words=1_000)
    world.route((1, 10_000))
    gateway = world.gateway(prices=PRICES)
    mine, key = limited(world, gateway, budget_usd_per_month=Decimal(100))
    connection = connect(mine, stream=True)
    while b"w9" not in connection.recv(65_536):
        pass
    connection.close()
    until(lambda: engine.left == 1, 2)
    record = until(lambda: next(iter(world.registry.traffic.window("bot")), None))
    assert (record.status, record.guards["usage"]) == (499, "estimated")
    [used] = world.registry.usage.month(world.registry.clock(), keys=[key.id])
    assert 9 <= used.completion_tokens < 200
    assert used.completion_tokens == record.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_before_anything_came_pays_for_the_prompt(world: World, stream: bool) -> None:
    engine = world.engine("e1", "bot@1", fault="never_answers")
    world.route((1, 10_000))
    gateway = world.gateway(prices=PRICES)
    mine, key = limited(world, gateway, budget_usd_per_month=Decimal(100))
    connection = connect(mine, stream=stream)
    until(lambda: engine.at_work == 1)
    connection.close()
    until(lambda: world.registry.traffic.window("bot"))
    [used] = world.registry.usage.month(world.registry.clock(), keys=[key.id])
    assert used.prompt_tokens > 0
    assert used.completion_tokens == 0


def test_what_no_engine_could_take_is_given_back_however_it_was_refused(world: World) -> None:
    engine = world.engine("e1", "bot@1", fault="status_503")
    world.route((1, 10_000))
    mine, _ = limited(world, world.gateway(), requests_per_minute=2)
    assert [mine.chat().error["code"] for _ in range(4)] == ["engine_busy"] * 4
    engine.stop()
    assert [mine.chat().error["code"] for _ in range(4)] == ["engine_unavailable"] * 4


def test_a_whole_answer_that_is_late_is_not_asked_for_twice_and_pays_what_it_reserved(world: World) -> None:
    slow, other = world.engine("e1", "bot@1", fault="never_answers"), world.engine("e2", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway(prices=PRICES, first_byte_timeout_s=0.3)
    mine, key = limited(world, gateway, budget_usd_per_month=Decimal(100))
    got = mine.chat(max_tokens=20)
    assert (got.status, got.error["code"]) == (504, "engine_timeout")
    assert (len(slow.seen), len(other.seen)) == (1, 0)
    record = until(lambda: next(iter(world.registry.traffic.window("bot")), None))
    assert (record.completion_tokens, record.guards["usage"]) == (20, "estimated")
    [used] = world.registry.usage.month(world.registry.clock(), keys=[key.id])
    assert (used.prompt_tokens > 0, used.completion_tokens) == (True, 20)
    slow.fault = "none"
    mine.chat()
    assert len(slow.seen) == 2, "late is not gone: it is asked on"


def test_feedback_counts_as_a_request_of_its_key(world: World) -> None:
    gateway = serving(world)
    mine, key = limited(world, gateway, requests_per_minute=3, tokens_per_minute=1_000)
    said = {"request_id": mine.chat().headers["x-request-id"], "thumb": "up"}
    assert mine.call("/v1/feedback", said | {"thumb": "sideways"}).status == 400  # nothing is taken for it
    assert [mine.call("/v1/feedback", said).status for _ in range(2)] == [201, 201]
    assert refused(mine.call("/v1/feedback", said)) > 1
    assert refused(mine.chat()) > 1
    assert gateway.metric(f'tuneloop_limited_requests_total{{key="{key.id}",limit="requests"}}') == 2
    assert gateway.call("/v1/feedback", said).status == 201  # a key without limits


def test_feedback_that_would_wait_behind_too_much_of_it_is_refused_and_may_come_again(world: World) -> None:
    gateway = serving(world, feedback_queue=1)
    said = {"request_id": gateway.chat().headers["x-request-id"], "thumb": "up"}
    until(lambda: world.registry.traffic.window("bot"))
    got: list[Got] = []
    threads = [threading.Thread(target=lambda: got.append(gateway.call("/v1/feedback", said))) for _ in range(4)]
    held = sqlite3.connect(world.home / "tuneloop.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")  # the database keeps the first one waiting
    try:
        for thread in threads:
            thread.start()
        until(lambda: len(got) == 3)
        assert {(one.status, one.error["code"], one.headers["retry-after"]) for one in got} == {
            (503, "overloaded", "1")
        }
    finally:
        held.execute("ROLLBACK")
        held.close()
        for thread in threads:
            thread.join(20)
    assert got[-1].status == 201
    assert gateway.call("/v1/feedback", said).status == 201


def test_a_rotated_keys_secrets_both_open_until_the_grace_is_over(world: World) -> None:
    gateway = serving(world)
    mine, key = limited(world, gateway)
    fresh, _ = world.registry.keys.rotate(key.id, by="test", grace_s=600)
    until(lambda: Address(gateway.url, fresh).chat().status == 200, 3)
    assert mine.chat().status == 200
    world.registry.keys.rotate(key.id, by="test")
    until(lambda: mine.chat().status == 401, 3)


def test_beyond_what_may_be_in_flight_requests_wait_fairly_and_are_refused_early(world: World) -> None:
    engine = world.engine("e1", "bot@1", fault="never_answers", faults_left=1)
    world.route((1, 10_000))
    gateway = world.gateway(max_in_flight=1, max_waiting=3, queue_timeout_s=20.0)
    blocker = connect(gateway, stream=False)
    until(lambda: engine.at_work == 1)
    other, _ = limited(world, gateway)
    answered: list[str] = []

    def ask(seen: Address, name: str) -> None:
        if seen.chat(text=name).status == 200:
            answered.append(name)

    threads = []
    for number, (seen, name) in enumerate(((gateway, "a1"), (gateway, "a2"), (other, "b1"))):
        threads.append(threading.Thread(target=ask, args=(seen, name)))
        threads[-1].start()
        wait_for(gateway, number + 1)
    all_wait_s = time.perf_counter()
    got = gateway.chat()
    assert (got.status, got.error["code"]) == (503, "overloaded")
    assert int(got.headers["retry-after"]) >= 1
    assert gateway.metric('tuneloop_shed_requests_total{reason="queue_full"}') == 1
    waited_ms = (time.perf_counter() - all_wait_s) * 1e3
    blocker.close()
    for thread in threads:
        thread.join()
    asked = [seen.body["messages"][0]["content"] for seen in engine.seen[1:]]
    assert asked == ["a1", "b1", "a2"]
    assert sorted(answered) == ["a1", "a2", "b1"]
    until(lambda: len(world.registry.traffic.window("bot")) == 4)
    queue_ms = [record.queue_ms for record in world.registry.traffic.window("bot") if record.status == 200]
    assert all(ms is not None and ms >= waited_ms for ms in queue_ms)
    assert gateway.metric("tuneloop_queue_seconds_count") == 3
    until(lambda: gateway.metric("tuneloop_requests_in_flight") == 0)


def test_a_client_that_leaves_the_queue_takes_nothing_with_it(world: World) -> None:
    engine = world.engine("e1", "bot@1", fault="never_answers", faults_left=1)
    world.route((1, 10_000))
    gateway = world.gateway(max_in_flight=1)
    blocker = connect(gateway, stream=False)
    until(lambda: engine.at_work == 1)
    mine, _ = limited(world, gateway, requests_per_minute=1)
    waiting = connect(mine, stream=False)
    wait_for(gateway, 1)
    waiting.close()
    wait_for(gateway, 0)
    blocker.close()
    until(lambda: gateway.metric("tuneloop_requests_in_flight") == 0)
    assert len(engine.seen) == 1
    assert mine.chat().status == 200  # its one request of this minute was given back


def test_who_has_waited_until_the_deadline_is_refused(world: World) -> None:
    engine = world.engine("e1", "bot@1", fault="never_answers", faults_left=1)
    world.route((1, 10_000))
    gateway = world.gateway(max_in_flight=1, queue_timeout_s=0.2)
    blocker = connect(gateway, stream=False)
    until(lambda: engine.at_work == 1)
    got = gateway.chat()
    assert (got.status, got.error["code"]) == (503, "overloaded")
    assert gateway.metric('tuneloop_shed_requests_total{reason="deadline"}') == 1
    blocker.close()
    until(lambda: gateway.metric("tuneloop_requests_in_flight") == 0)
    assert gateway.chat().status == 200
