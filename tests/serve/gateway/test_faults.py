"""Engines fail: before the first byte one other attempt is made, after it never, and the client is always told."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import openai
import pytest

from serve.gateway.faulty_engine import Fault
from serve.gateway.test_answers import recorded
from serve.gateway.world import Address, World, until
from tuneloop.registry.guard_policy import GuardPolicy, OutputGuards
from tuneloop.serve.gateway.upstream import FAULTS

STREAMS = pytest.mark.parametrize("stream", [False, True])


def failures(gateway: Address, engine: str) -> dict[str, float]:
    """Kind → attempts for version 1 of `bot` that an engine failed."""
    name = "tuneloop_engine_failures_total"
    return {
        kind: gateway.metric(f'{name}{{engine="{engine}",kind="{kind}",model="bot",version="1"}}') for kind in FAULTS
    }


@STREAMS
@pytest.mark.parametrize(
    "fault", ["dies_before_first_byte", "status_500", "status_503", "status_404", "error_as_first_event"]
)
def test_a_failure_before_the_first_byte_is_tried_on_another_engine(world: World, fault: Fault, stream: bool) -> None:
    bad, good = world.engine("e1", "bot@1", fault=fault), world.engine("e2", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    got = gateway.chat(stream=stream)
    if fault == "error_as_first_event" and not stream:
        assert (len(bad.seen), len(good.seen)) == (1, 0)
        return
    assert got.status == 200
    assert (len(bad.seen), len(good.seen)) == (1, 1)
    assert recorded(world, got.headers["x-request-id"]).engine == "e2"
    assert gateway.metric('tuneloop_retries_total{model="bot"}') == 1
    assert sum(failures(gateway, "e1").values()) == 1
    assert not any(failures(gateway, "e2").values())


@STREAMS
def test_a_single_engine_is_tried_again_with_the_same_version(world: World, stream: bool) -> None:
    engine = world.engine("e1", "bot@1", "bot@2", fault="dies_before_first_byte", faults_left=1)
    world.route((2, 10_000), (1, 0))
    got = world.gateway().chat(stream=stream)
    assert (got.status, got.headers["x-tuneloop-version"], len(engine.seen)) == (200, "bot@2", 2)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("dies_before_first_byte", 503, "engine_unavailable"),
        ("status_500", 502, "engine_error"),
        ("status_503", 503, "engine_busy"),
        ("status_404", 503, "engine_unavailable"),
        ("no_such_path", 503, "engine_unavailable"),  # of a chat: a proxy leads it astray
    ],
)
def test_when_every_attempt_fails_the_client_gets_one_clear_error(
    world: World, fault: Fault, status: int, code: str
) -> None:
    engines = [world.engine(name, "bot@1", fault=fault) for name in ("e1", "e2", "e3")]
    world.route((1, 10_000))
    got = world.gateway().chat()
    assert (got.status, got.error["code"], got.error["type"]) == (status, code, "server_error")
    assert sum(len(engine.seen) for engine in engines) == 2
    assert "127.0.0.1" not in got.error["message"]
    record = recorded(world, got.headers["x-request-id"])
    assert record.status == status
    assert record.error is not None
    assert "engine e" in record.error


def test_a_refusal_of_the_engine_reaches_the_client_and_is_not_tried_again(world: World) -> None:
    engine = world.engine("e1", "bot@1", fault="status_400")
    world.route((1, 10_000))
    got = world.gateway().chat()
    assert (got.status, got.error["param"]) == (400, "stop")
    assert got.error["message"] == "said the engine with 400"
    assert len(engine.seen) == 1


def test_a_dead_engine_costs_no_request(world: World) -> None:
    dead, alive = world.engine("e1", "bot@1"), world.engine("e2", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    dead.stop()
    assert [gateway.chat(stream=n % 2 == 0).status for n in range(20)] == [200] * 20
    assert len(alive.seen) == 20
    retries = gateway.metric('tuneloop_retries_total{model="bot"}')
    assert 1 <= retries <= 2
    assert failures(gateway, "e1")["unreachable"] == sum(failures(gateway, "e1").values()) == retries


@pytest.mark.parametrize("fault", ["status_500", "status_503"])
def test_an_engine_that_fails_at_once_does_not_draw_the_requests_of_a_healthy_one(world: World, fault: Fault) -> None:
    bad, good = world.engine("e1", "bot@1", fault=fault), world.engine("e2", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    assert [gateway.chat(stream=n % 2 == 0).status for n in range(100)] == [200] * 100
    assert len(good.seen) == 100
    assert 1 <= len(bad.seen) < 20


@pytest.mark.parametrize("fault", ["dies_in_mid_stream", "ends_without_done"])
def test_an_engine_that_breaks_each_stream_off_after_it_began_draws_few(world: World, fault: Fault) -> None:
    bad, good = world.engine("e1", "bot@1", fault=fault), world.engine("e2", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    whole = sum(b"data: [DONE]" in gateway.chat(stream=True).body for _ in range(40))
    assert 1 <= len(bad.seen) < 10
    assert len(good.seen) == 40 - len(bad.seen)
    assert whole >= len(good.seen)


def test_a_dying_fleet_does_not_get_double_load(world: World) -> None:
    engine = world.engine("e1", "bot@1", fault="status_500")
    world.route((1, 10_000))
    gateway = world.gateway(retry_share=0.1)
    for _ in range(40):
        assert gateway.chat().status == 502
    assert 50 <= len(engine.seen) <= 40 + 10 + 5


@STREAMS
def test_an_engine_that_never_answers_is_given_up_in_time(world: World, stream: bool) -> None:
    engine = world.engine("e1", "bot@1", fault="never_answers")
    world.route((1, 10_000))
    gateway = world.gateway(first_byte_timeout_s=0.3)
    started = time.monotonic()
    got = gateway.chat(stream=stream)
    assert (got.status, got.error["code"]) == (504, "engine_timeout")
    assert time.monotonic() - started < 3
    until(lambda: engine.left == 1, what="the engine learns that nobody waits")


def test_a_hanging_engine_is_left_for_another(world: World) -> None:
    world.engine("e1", "bot@1", fault="never_answers")
    world.engine("e2", "bot@1")
    world.route((1, 10_000))
    got = world.gateway(first_byte_timeout_s=1).chat(stream=True)
    assert got.status == 200
    assert recorded(world, got.headers["x-request-id"]).engine == "e2"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("dies_in_mid_stream", "engine_error"),
        ("ends_without_done", "engine_error"),
        ("silent_in_mid_stream", "engine_timeout"),
    ],
)
def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_tried_again(
    world: World, fault: Fault, code: str
) -> None:
    engines = [world.engine(name, "bot@1", fault=fault) for name in ("e1", "e2")]
    world.route((1, 10_000))
    gateway = world.gateway(idle_timeout_s=0.4 if fault == "silent_in_mid_stream" else 30)
    got = gateway.chat(stream=True)
    assert got.status == 200
    *before, last, end = got.body.decode().split("\n\n")
    assert (len(before), end) == (2, "")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == (code, "server_error")
    assert sum(len(engine.seen) for engine in engines) == 1
    record = recorded(world, got.headers["x-request-id"])
    assert record.status == (504 if code == "engine_timeout" else 502)
    assert record.error


def test_the_official_client_sees_a_broken_stream_as_an_error(world: World) -> None:
    world.engine("e1", "bot@1", fault="dies_in_mid_stream")
    world.route((1, 10_000))
    got: list[Any] = []
    with world.gateway().client() as client:
        hello = [{"role": "user", "content": "x"}]
        stream = client.chat.completions.create(model="bot", messages=hello, stream=True)
        with stream, pytest.raises(openai.APIError, match="broke off"):
            got.extend(stream)
    assert len(got) == 2


def test_an_error_event_of_the_engine_is_passed_on_and_recorded(world: World) -> None:
    world.engine("e1", "bot@1", fault="error_as_later_event", pause_s=0.1)
    world.route((1, 10_000))
    got = world.gateway().chat(stream=True)
    assert b"out of memory" in got.body
    record = recorded(world, got.headers["x-request-id"])
    assert (record.status, record.error) == (500, "out of memory")


def test_each_way_in_which_an_engine_fails_is_counted_as_such(world: World) -> None:
    engine = world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway(first_byte_timeout_s=2.0, idle_timeout_s=2.0)
    expected = dict.fromkeys(map(str, FAULTS), 0.0)
    for fault, stream, kind in (
        ("dies_before_first_byte", True, "lost"),
        ("absurd", True, "lost"),
        ("absurd", False, "error"),
        ("status_500", False, "error"),
        ("error_as_first_event", True, "error"),
        ("error_as_later_event", True, "error"),
        ("status_503", False, "busy"),
        ("status_404", False, "not_loaded"),
        ("dies_in_mid_stream", True, "broke_off"),
        ("ends_without_done", True, "broke_off"),
        ("silent_in_mid_stream", True, "timeout"),
        ("never_answers", False, "timeout"),
        ("status_400", False, None),  # the client's fault
        ("none", True, None),
    ):
        engine.fault, engine.faults_left = cast("Fault", fault), 1
        gateway.chat(stream=stream)
        if kind is not None:
            expected[kind] += 1
        until(lambda: failures(gateway, "e1") == expected, what=f"{fault} is counted")


def test_an_absurd_answer_does_not_harm_the_gateway(world: World) -> None:
    world.engine("e1", "bot@1", fault="absurd")
    world.route((1, 10_000))
    gateway = world.gateway()
    got = gateway.chat(stream=True)
    assert (got.status, got.error["code"]) == (503, "engine_unavailable")
    assert gateway.chat().status == 502


@STREAMS
def test_an_answer_that_cannot_be_masked_is_the_engines_failure_and_tried_elsewhere(world: World, stream: bool) -> None:
    policy = GuardPolicy(
        injection="off", hidden="off", secrets="off", personal="off", output=OutputGuards(personal="off")
    )
    world.registry.policies.set("bot", policy, by="test", reason="test")
    bad = world.engine("e1", "bot@1", fault="choices_that_are_none")
    world.route((1, 10_000))
    gateway = world.gateway()
    until(lambda: (got := gateway.chat(stream=stream)).status == 502 and got.error["code"] == "engine_error")
    good = world.engine("e2", "bot@1")
    until(lambda: gateway.chat(stream=stream).status == 200 and bad.seen and good.seen)
