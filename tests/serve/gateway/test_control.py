"""What is decided in the registry reaches every gateway, quickly and without breaking what is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import sqlalchemy as sa

from serve.gateway.world import Address, World, until, wait_ready
from tests_support import free_port
from tuneloop.registry import Registry
from tuneloop.registry.nouns import utc_now
from tuneloop.registry.routes import promotion
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.records import Recorder
from tuneloop.serve.gateway.snapshot import LAST_KNOWN_GOOD


def test_a_new_revision_is_applied_and_reported_within_two_seconds(world: World) -> None:
    world.engine("e1", "bot@1", "bot@2")
    world.route((2, 0), (1, 10_000))
    gateways = [world.gateway(id=name, poll_s=0.5) for name in ("g1", "g2")]
    for version, route in [(2, ((1, 0), (2, 10_000))), (1, ((2, 0), (1, 10_000)))]:
        written = world.route(*route)
        assert world.registry.fleet.wait_applied("bot", written.revision, timeout_s=2.0) == ["g1", "g2"]
        for gateway in gateways:
            assert gateway.chat().headers["x-tuneloop-version"] == f"bot@{version}"
            assert gateway.metric('tuneloop_route_revision{model="bot"}') == written.revision


def test_an_emergency_rollback_reaches_all_gateways_within_two_seconds_and_loads_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb's own code, MLflow away, against gateways of processes of their own; by what each says it applies."""
    monkeypatch.setattr(promotion, "MIRROR_TIMEOUT_S", 0.1)  # the aliases follow when MLflow is there again
    engine = world.engine("e1", "bot@1", "bot@2")
    world.route((1, 0), (2, 10_000))
    world.route((2, 0), (1, 10_000))
    away = world.registry.settings.model_copy(update={"mlflow_uri": "http://127.0.0.1:9"})
    ports = free_port(), free_port()
    reached: dict[int, float] = {}

    def applied(gateway: Address) -> float:
        return gateway.metric('tuneloop_route_revision{model="bot"}')

    world.registry.gates.approve("bot", 2, by="ada", reason="test")
    with Registry(away) as registry, ExitStack() as running:
        gateways = [
            running.enter_context(world.process(port, ready=False, TUNELOOP_GATEWAY_ID=f"g{port}")).address
            for port in ports
        ]
        _ = registry.versions  # importing MLflow takes seconds, and is not what is measured
        for gateway in gateways:
            wait_ready(gateway)
            until(lambda gateway=gateway: applied(gateway) == 2)  # type: ignore[misc]
        until(lambda: len(registry.fleet.gateways()) == 2)

        def watch(number: int) -> None:
            until(lambda: applied(gateways[number]) == 3, 10)
            reached[number] = time.monotonic() - began

        watchers = [threading.Thread(target=watch, args=(number,)) for number in range(2)]
        began = time.monotonic()
        for watcher in watchers:
            watcher.start()
        back = rollback(registry, "bot", Change("ada", "it answers in riddles"))
        for watcher in watchers:
            watcher.join()
        assert (back.revision, back.split) == (3, {1: 0, 2: 10_000})
        assert max(reached[number] for number in range(2)) < 2.0, reached
        assert {gateway.chat().headers["x-tuneloop-version"] for gateway in gateways} == {"bot@2"}
    assert len(engine.seen) == 2, "nothing was asked of the engine but the two questions"


def test_raising_a_canary_never_moves_a_user_back_and_breaks_no_stream(world: World) -> None:
    world.engine("e1", "bot@1", "bot@2", pause_s=0.01, words=3)
    world.route((2, 0), (1, 10_000))
    gateway = world.gateway()
    seen: dict[str, list[str]] = {}
    ended = threading.Event()

    def ask(group: int) -> None:
        while not ended.is_set():
            for n in range(5):
                got = gateway.chat(unit=f"{group}-{n}", stream=True)
                assert got.body.endswith(b"data: [DONE]\n\n")
                seen.setdefault(f"{group}-{n}", []).append(got.headers["x-tuneloop-version"])

    threads = [threading.Thread(target=ask, args=(group,)) for group in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(seen) == 20)
    for weight in (1_000, 3_000, 5_000, 10_000):
        revision = world.route((2, weight), (1, 10_000 - weight)).revision
        world.registry.fleet.wait_applied("bot", revision, timeout_s=2.0)
        time.sleep(0.2)
    until(lambda: all(versions[-1] == "bot@2" for versions in seen.values()))
    ended.set()
    for thread in threads:
        thread.join()
    assert len(seen) == 20
    assert {versions[0] for versions in seen.values()} == {"bot@1"}
    for versions in seen.values():
        assert versions == sorted(versions)


def test_a_version_that_becomes_ready_while_streams_run_takes_over_without_breaking_them(world: World) -> None:
    world.engine("e1", "bot@1", pause_s=0.05, words=30)
    world.route((2, 0), (1, 10_000))
    gateway = world.gateway()
    with gateway.client() as client:
        hello = [{"role": "user", "content": "Hello?"}]
        streams = [client.chat.completions.create(model="bot", messages=hello, stream=True) for _ in range(5)]
        world.serves("e1", "bot@1", "bot@2")
        revision = world.route((1, 0), (2, 10_000)).revision
        world.registry.fleet.wait_applied("bot", revision, timeout_s=2.0)
        until(lambda: gateway.chat().headers["x-tuneloop-version"] == "bot@2", 2)
        for stream in streams:
            assert "w29 " in "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_the_heartbeat_names_the_gateway_its_revisions_and_what_it_carries(world: World) -> None:
    world.route((1, 10_000))
    gateway = world.gateway(id="front")
    state = until(lambda: next(iter(world.registry.fleet.gateways()), None))
    assert (state.id, state.url, state.applied) == ("front", gateway.url, {"bot": 1})
    assert (state.in_flight, state.dropped_records) == ({}, 0)
    assert abs((utc_now() - state.at).total_seconds()) < 3


def test_what_is_known_is_written_down_and_rewritten_on_change(world: World) -> None:
    world.route((1, 10_000))
    world.gateway()
    file = world.home / "gateway" / "gw" / LAST_KNOWN_GOOD
    until(lambda: file.exists() and b'"revision":1' in file.read_bytes())
    world.route((1, 10_000))
    until(lambda: b'"revision":2' in file.read_bytes(), 2)
    assert world.key.encode() not in file.read_bytes()


def test_a_database_that_forgot_a_route_is_not_believed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    assert gateway.chat().status == 200
    with world.registry.database.writing() as connection:  # as if a lost SQLite file had been made anew, empty
        connection.execute(sa.text("DELETE FROM routes"))
    until(lambda: gateway.metric("tuneloop_registry_up") == 0)
    assert gateway.chat().status == 200
    assert sum("the database has lost bot revision 1" in record.getMessage() for record in caplog.records) == 1


def test_an_engine_whose_heartbeat_stops_is_shown_as_not_ready(world: World) -> None:
    world.engine("e1", "bot@1")
    gateway = world.gateway()
    until(lambda: gateway.metric('tuneloop_engine_ready{engine="e1"}') == 1)
    world.engines.clear()
    time.sleep(1.1)
    world.registry.fleet.forget_engine("e1")
    until(lambda: gateway.metric('tuneloop_engine_ready{engine="e1"}') == 0, 2)


def test_full_queues_drop_records_and_say_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = Recorder._store, threading.Event()

    def store_once_all_have_asked(recorder: Recorder, batch: Sequence[Exchange]) -> None:
        asked.wait(60)
        store(recorder, batch)

    monkeypatch.setattr(Recorder, "_store", store_once_all_have_asked)
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway(record_queue=1)
    requests = 30
    threads = [threading.Thread(target=gateway.chat) for _ in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked.set()
    until(lambda: gateway.metric("tuneloop_records_pending") == 0)
    dropped = gateway.metric("tuneloop_records_dropped_total")
    assert dropped > 0
    until(lambda: len(world.registry.traffic.window("bot")) == requests - dropped)
    until(lambda: world.registry.fleet.gateways()[0].dropped_records == dropped)


def test_two_gateways_never_share_an_id(world: World) -> None:
    with world.process(free_port()), world.process(free_port(), ready=False) as second:
        code, errors = second.wait()
    assert code == 1
    assert "a gateway with the id 'gw' runs already" in errors
