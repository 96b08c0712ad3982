"""Copies for a route's shadow: recorded apart, given to nobody, and dropped before anything real waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serve.gateway.faulty_engine import FaultyEngine
from serve.gateway.test_answers import recorded
from serve.gateway.test_limits import limited
from serve.gateway.world import Address, Got, World, until
from tuneloop.registry.guard_policy import GuardPolicy, OutputGuards
from tuneloop.registry.nouns import AdapterState, Arm, EngineState, RequestRecord, Route, Shadow
from tuneloop.registry.routes.assignment import key_hash, shadowed
from tuneloop.registry.routes.shadowing import shadow_now
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway import load as load_of_gateway
from tuneloop.serve.gateway.app import Gateway
from tuneloop.serve.gateway.body import Limits, read
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.load import Load
from tuneloop.serve.gateway.metrics import Metrics
from tuneloop.serve.gateway.records import Recorder
from tuneloop.serve.gateway.routing import Plan
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.shadows import Shadows
from tuneloop.serve.gateway.snapshot import Snapshot, Target

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
ROUTE = Route(
    model="bot",
    revision=1,
    arms=(Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)),
    salt="s",
    by="t",
    reason="t",
    at=AT,
    shadow=Shadow(version=2, share_bp=10_000),
)
ASK = read(b'{"model":"bot","messages":[{"role":"user","content":"Hello?"}]}', "chat", Limits(100, 100, 1))


def route_with_shadow(world: World, share_bp: int = 10_000) -> Route:
    """`bot@1` answers everybody; `bot@2` is sent copies."""
    arms = [Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)]
    shadow = (Shadow(version=2, share_bp=share_bp),)
    return world.registry.routes.write("bot", arms, by="t", reason="t", expected_revision=0, shadow=shadow)


def copied(world: World, got: Got) -> RequestRecord:
    """What the shadow answered to the copy of a request, once it is in the database."""
    asked = got.headers["x-request-id"]
    assert got.status == 200, got.body
    return until(lambda: next(iter(world.registry.traffic.shadows_of(asked)), None), 60, asked)


def engine_state(engine: FaultyEngine) -> EngineState:
    """A live engine with both versions."""
    adapters = {"bot@1": AdapterState.READY, "bot@2": AdapterState.READY}
    known = {"base": "b", "base_digest": "d", "template_digest": "t", "max_loras": 6, "max_lora_rank": 16}
    return EngineState.model_validate(
        {"id": engine.id, "url": engine.url, "state": "ready", "adapters": adapters, "at": AT} | known
    )


def dropped(gateway: Address, reason: str) -> float:
    return gateway.metric(f'tuneloop_shadow_dropped_total{{model="bot",reason="{reason}"}}')


def test_the_client_is_answered_by_its_arm_and_the_copy_is_recorded_apart(world: World) -> None:
    secret = "AKIA" + "IOSFODNN7EXAMPLE"
    live, shadow = world.engine("e1", "bot@1"), world.engine("e2", "bot@2", says=("a longer ", "answer"))
    route = route_with_shadow(world)
    gateway = world.gateway(record_text="redacted")
    mine, key = limited(world, gateway, requests_per_minute=2)
    for stream in (False, True):
        got = mine.chat(stream=stream, text="I am ada@example.com", temperature=0, unit="u1")
        assert (got.status, got.headers["x-tuneloop-version"]) == (200, "bot@1")
        assert b"longer" not in got.body
        copy, asked = copied(world, got), recorded(world, got.headers["x-request-id"])
        assert (shadow.seen[-1].body["model"], shadow.seen[-1].body["temperature"]) == ("bot@2", 0)
        assert shadow.seen[-1].headers["x-request-id"] == copy.id != asked.id
        assert (copy.served_version, copy.assigned_version, copy.engine, copy.status) == (2, None, "e2", 200)
        assert (copy.revision, copy.key_hash, copy.stream) == (route.revision, key_hash("u1"), stream)
        assert (copy.answer, copy.completion_tokens, copy.messages) == ("a longer answer", 5, asked.messages)
        assert "ada@example.com" not in copy.messages[0].content
        assert copy.queue_ms is not None
        assert copy.ttft_ms is not None
        assert copy.queue_ms <= copy.ttft_ms <= copy.total_ms
    assert (len(live.seen), len(shadow.seen), len(world.registry.traffic.window("bot"))) == (2, 2, 2)
    [usage] = world.registry.usage.month(asked.at, keys=[key.id])
    assert (usage.requests, int(got.headers["x-ratelimit-remaining-requests"])) == (2, 0)
    assert gateway.metric('tuneloop_shadow_requests_total{model="bot",status="200",version="2"}') == 2
    assert gateway.metric('tuneloop_requests_total{model="bot",status="200",version="2"}') == 0
    report = shadow_now(world.registry, route).report
    assert report is not None
    assert (report.pairs, report.failed, report.live_failed) == (2, 0, 0)
    # What guards would hide is not kept of an answer that nobody judges.
    shadow.says, output = (f"the key is {secret} ",), OutputGuards(personal="off")
    policy = GuardPolicy(injection="off", hidden="off", secrets="off", personal="off", output=output)
    world.registry.policies.set("bot", policy, by="t", reason="t")

    def unkept() -> RequestRecord | None:
        copy = copied(world, gateway.chat())
        return copy if "output.guards" in copy.guards else None

    assert until(unkept).answer is None


def test_only_keys_of_the_shadow_are_copied_and_neither_pins_nor_keys_with_a_version_of_their_own(world: World) -> None:
    world.engine("e1", "bot@1", "bot@2")
    route = route_with_shadow(world, 5_000)
    inside = next(f"u{n}" for n in range(1_000) if shadowed(route, key_hash(f"u{n}")))
    outside = next(f"u{n}" for n in range(1_000) if not shadowed(route, key_hash(f"u{n}")))
    world.registry.routes.write(
        "bot", route.arms, by="t", reason="t", expected_revision=1, overrides={key_hash("tester"): 2}
    )
    gateway = world.gateway()
    secret, _ = world.registry.keys.new("pins", by="test", may_pin=True)
    pins = Address(gateway.url, secret)
    until(lambda: pins.call("/v1/models").status == 200)
    assert pins.chat(model="bot@1", unit=inside).status == 200
    answers = [gateway.chat(unit=unit) for unit in (outside, "tester", inside)]
    copied(world, answers[-1])
    assert gateway.metric('tuneloop_shadow_requests_total{model="bot",status="200",version="2"}') == 1
    assert [world.registry.traffic.shadows_of(got.headers["x-request-id"]) for got in answers[:2]] == [[], []]


@pytest.mark.parametrize(
    ("fault", "stream", "status"),
    [
        ("status_500", False, 502),
        ("error_as_later_event", True, 500),
        ("silent_in_mid_stream", True, 504),
        ("absurd", False, 502),
    ],
)
def test_a_shadow_that_fails_is_recorded_once_and_costs_nobody_anything(
    world: World, fault: Any, stream: bool, status: int
) -> None:
    live, shadow = world.engine("e1", "bot@1"), world.engine("e2", "bot@2", fault=fault)
    route_with_shadow(world)
    gateway = world.gateway(shadow_timeout_s=0.5)
    got = gateway.chat(stream=stream)
    copy = copied(world, got)
    assert copy.status == status
    assert copy.error is not None
    assert (len(live.seen), len(shadow.seen)) == (1, 1), "it is not tried again"
    assert gateway.metric('tuneloop_retries_total{model="bot"}') == 0
    assert recorded(world, got.headers["x-request-id"]).error is None


@pytest.mark.parametrize(("fault", "reason"), [("status_503", "busy"), ("dies_before_first_byte", "engine")])
def test_what_says_nothing_about_the_version_is_dropped_and_counted(world: World, fault: Any, reason: str) -> None:
    world.engine("e1", "bot@1"), world.engine("e2", "bot@2", fault=fault)
    route_with_shadow(world)
    gateway = world.gateway()
    assert gateway.chat().status == 200
    until(lambda: dropped(gateway, reason) == 1)


def test_a_shadow_without_an_engine_costs_nothing_and_is_counted(world: World) -> None:
    world.engine("e1", "bot@1")
    route_with_shadow(world)
    gateway = world.gateway()
    got = gateway.chat()
    assert got.status == 200
    until(lambda: dropped(gateway, "no_engine") == 1)
    assert recorded(world, got.headers["x-request-id"]).status == 200
    assert world.registry.traffic.shadows_of(got.headers["x-request-id"]) == []


async def unit_world(
    engine: FaultyEngine, **settings: Any
) -> tuple[Shadows, Load, list[Exchange], list[str], list[int]]:
    """Copies to one real engine, without a gateway: what ended, what was dropped, and how many requests wait."""
    finished: list[Exchange] = []
    why: list[str] = []
    waiting = [0]
    load = Load()
    beat = engine_state(engine)
    view = Snapshot.of(AT, {"bot": ROUTE}, [beat], ())
    shadows = Shadows(
        GatewaySettings(**settings),
        lambda: view,
        load,
        lambda: waiting[0],
        finished.append,
        lambda _, reason: why.append(reason),
    )
    await shadows.start()
    return shadows, load, finished, why, waiting


def original() -> Exchange:
    return Exchange("chat", plan=Plan(ROUTE, 1, (1,)), unit="u1", unit_source="header")


async def ended(found: Callable[[], object]) -> None:
    await asyncio.to_thread(until, found)


@pytest.fixture
def slow() -> Iterator[FaultyEngine]:
    """An engine that takes requests and never answers."""
    engine = FaultyEngine("e1", fault="never_answers")
    engine.start()
    yield engine
    engine.stop()


def test_copies_wait_in_a_short_queue_until_their_deadline_and_the_rest_is_dropped(slow: FaultyEngine) -> None:
    async def run() -> None:
        shadows, load, finished, why, _ = await unit_world(
            slow, shadow_in_flight=1, shadow_queue=1, shadow_timeout_s=0.5
        )
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as clock:  # all in one moment: their deadlines are one too
            clock.setattr(loop, "time", partial(float, loop.time()))
            for _ in range(3):
                shadows.copy(original(), ASK)
        await asyncio.sleep(0)
        assert why == ["queue"], "taking a copy waits for nothing"
        await ended(lambda: len(why) == 2)
        assert (why[1], len(slow.seen)) == ("deadline", 1), "the one that waited was never sent"
        assert [(copy.status, copy.error) for copy in finished] == [(504, "cancelled at its deadline of 0.5 s")]
        assert (load.in_flight(), load.aside()) == ({}, frozenset())
        await ended(lambda: slow.left == 1)
        shadows.copy(original(), ASK)
        await ended(lambda: len(slow.seen) == 2)
        await shadows.stop()
        shadows.copy(original(), ASK)
        await asyncio.sleep(0)
        assert (why[2:], len(finished), load.in_flight()) == (["stopped", "stopped"], 1, {})

    asyncio.run(run())


def test_copies_steer_no_request_though_the_engine_keeps_what_they_use(slow: FaultyEngine) -> None:
    async def run() -> None:
        shadows, load, _, _, _ = await unit_world(slow)
        shadows.copy(original(), ASK)
        await ended(lambda: len(slow.seen) == 1)
        assert (load.of("e1"), load.in_flight()) == (0, {"e1|bot@2": 1})
        await shadows.stop()
        assert load.in_flight() == {}

    asyncio.run(run())


def test_a_copy_that_cannot_be_recorded_is_counted_as_a_defect() -> None:
    async def run(engine: FaultyEngine) -> None:
        shadows, _, _, why, _ = await unit_world(engine)

        def full(_: Exchange) -> None:
            raise OSError("no space left on device")

        shadows._finished = full
        shadows.copy(original(), ASK)
        await ended(lambda: why == ["defect"])
        await shadows.stop()

    engine = FaultyEngine("e1")
    engine.start()
    try:
        asyncio.run(run(engine))
    finally:
        engine.stop()


def test_copies_lose_their_place_among_the_records_before_requests_do(registry_home: Path, tmp_path: Path) -> None:
    settings = GatewaySettings(record_queue=4, record_queue_bytes=1_000)
    link = Link(RegistrySettings(home=registry_home))
    by_count, by_text = (Recorder(settings, link, tmp_path / name, Metrics()) for name in ("count", "text"))
    full = []
    for _ in range(3):
        full.append(by_count.is_half_full)
        by_count.add(original())
    assert (full, by_count.dropped) == ([False, False, True], 0)
    said = original()
    said.messages = (("user", "x" * 501),)
    by_text.add(said)
    assert by_text.is_half_full
    gateway = Gateway(settings, RegistrySettings(home=registry_home))
    copy = original()
    copy.target, copy.queue_ms = Target(2, "bot@2", "e1", "http://127.0.0.1:9"), 0.0
    for _ in range(3):
        gateway._shadow_finished(copy)
    text = gateway._metrics.text().decode()
    assert 'tuneloop_shadow_requests_total{model="bot",status="200",version="2"} 2.0' in text
    assert 'tuneloop_shadow_dropped_total{model="bot",reason="records"} 1.0' in text, "each is counted once"
    link.close()


def test_a_busy_engine_and_requests_that_wait_for_their_turn_come_before_copies(slow: FaultyEngine) -> None:
    async def run() -> None:
        shadows, load, finished, why, waiting = await unit_world(slow, shadow_engine_load=2)
        target = Target(1, "bot@1", "e1", slow.url)
        for _ in range(3):
            load.carry(target)
        shadows.copy(original(), ASK)
        await ended(lambda: why == ["busy"])
        load.put_down(target)
        waiting[0] = 1
        shadows.copy(original(), ASK)
        await ended(lambda: why == ["busy", "busy"])
        assert slow.seen == []
        waiting[0] = 0
        for _ in range(3):  # its own copies do not make an engine busy
            shadows.copy(original(), ASK)
        await ended(lambda: len(slow.seen) == 3)
        await shadows.stop()
        assert finished == []

    asyncio.run(run())


def test_no_copy_goes_where_the_breaker_lets_no_request_go(slow: FaultyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_of_gateway, "SET_ASIDE_S", 600.0)  # longer than any machine takes

    async def run() -> None:
        shadows, load, _, why, _ = await unit_world(slow)
        for is_gone in (False, True):
            if is_gone:
                load.set_aside("e1")
            else:
                load.shun("e1|bot@2", busy=False)
            shadows.copy(original(), ASK)
            await ended(lambda: len(why) == 1)
            assert (why.pop(), slow.seen) == ("no_engine", [])
            load.answered(Target(2, "bot@2", "e1", slow.url))
        shadows.copy(original(), ASK)
        await ended(lambda: len(slow.seen) == 1)
        await shadows.stop()

    asyncio.run(run())
