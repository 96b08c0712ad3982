"""With the database gone the gateway serves on, starts again, and loses neither a record nor feedback."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from serve.gateway.wire import Wire
from serve.gateway.world import Address, World, until
from tests_support import free_port
from tuneloop.registry.guard_policy import GuardPolicy

Far = tuple[World, World, Wire]


def spool_of(world: World, kind: str) -> list[Path]:
    return sorted((world.home / "gateway" / "gw" / "spool").glob(f"{kind}-*.jsonl"))


def thumb(gateway: Address, request_id: str) -> int:
    return gateway.call("/v1/feedback", {"request_id": request_id, "thumb": "down"}).status


def test_a_gateway_serves_on_without_its_database_and_stores_everything_later(
    far_world: Far, caplog: pytest.LogCaptureFixture
) -> None:
    near, far, wire = far_world
    near.engine("e1", "bot@1", "bot@2")
    near.route((2, 5_000), (1, 5_000))
    gateway = far.gateway()
    versions = {unit: gateway.chat(unit=unit).headers["x-tuneloop-version"] for unit in map(str, range(10))}
    until(lambda: len(near.registry.traffic.window("bot")) == 10)

    wire.cut()
    until(lambda: gateway.metric("tuneloop_registry_up") == 0, 8)
    answers = [gateway.chat(unit=unit, stream=int(unit) % 2 == 0) for unit in versions]
    assert [got.status for got in answers] == [200] * 10
    assert {str(n): got.headers["x-tuneloop-version"] for n, got in enumerate(answers)} == versions
    assert thumb(gateway, answers[0].headers["x-request-id"]) == 201
    assert gateway.call("/readyz").status == 200
    until(lambda: gateway.metric("tuneloop_records_spooled_total") == 11, 2)
    assert len(near.registry.traffic.window("bot")) == 10

    wire.mend()
    until(lambda: len(near.registry.traffic.window("bot")) == 20, 8)
    until(lambda: spool_of(near, "requests") == spool_of(near, "feedback") == [])
    first = answers[0].headers["x-request-id"]
    assert [f.thumb for f in near.registry.traffic.feedback_for([first])[first]] == ["down"]
    until(lambda: gateway.metric("tuneloop_registry_up") == 1)
    assert gateway.metric("tuneloop_records_dropped_total") == 0
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum("does not answer" in line for line in said) == 1
    assert sum("answers again" in line for line in said) == 1


def test_engines_get_time_to_report_when_the_database_is_back(far_world: Far) -> None:
    near, far, wire = far_world
    near.engine("e1", "bot@1")
    near.route((1, 10_000))
    gateway = far.gateway()
    wire.cut()
    until(lambda: gateway.metric("tuneloop_registry_up") == 0, 8)
    engines = dict(near.engines)
    near.engines.clear()  # no heartbeat has been stored for long
    time.sleep(1.1)
    near.registry.fleet.forget_engine("e1")
    wire.mend()
    until(lambda: gateway.metric("tuneloop_registry_up") == 1, 8)
    assert [gateway.chat().status for _ in range(5)] == [200] * 5
    near.engines |= engines
    until(near.registry.fleet.engines)
    assert gateway.chat().status == 200


def test_a_gateway_started_without_its_database_serves_what_it_knew(far_world: Far) -> None:
    near, far, wire = far_world
    near.engine("e1", "bot@1", "bot@2")
    near.route((2, 5_000), (1, 5_000))
    only_length = GuardPolicy(max_characters=50, injection="off", hidden="off", secrets="off", personal="off")
    near.registry.policies.set("bot", only_length, by="test", reason="test")
    with far.process(free_port()) as process:
        gateway = process.address
        versions = {unit: gateway.chat(unit=unit).headers["x-tuneloop-version"] for unit in map(str, range(8))}
        until(lambda: len(near.registry.traffic.window("bot")) == 8)
        wire.cut()
        process.kill()
        process.start()
        answers = [gateway.chat(unit=unit) for unit in versions]
        assert [got.headers["x-tuneloop-version"] for got in answers] == list(versions.values())
        assert thumb(gateway, answers[0].headers["x-request-id"]) == 201
        until(lambda: gateway.metric("tuneloop_records_spooled_total") == 9)
        process.kill()
        process.start()
        assert gateway.chat().status == 200
        assert gateway.chat(text="x" * 51).error["code"] == "guard_blocked"
        wire.mend()
        until(lambda: len(near.registry.traffic.window("bot")) == 8 + 8 + 2, 10)
        first = answers[0].headers["x-request-id"]
        until(lambda: near.registry.traffic.feedback_for([first]))
        assert process.end()[0] == 0


def test_without_database_and_without_a_last_view_it_starts_and_says_why_it_is_not_ready(far_world: Far) -> None:
    near, far, wire = far_world
    wire.cut()
    with far.process(free_port(), ready=False) as process:
        gateway = process.address

        def says() -> str:
            try:
                return str(gateway.call("/readyz").json["reason"])
            except OSError:
                return ""

        until(lambda: "onnection" in says() and "no last known good view" in says(), 15)
        assert gateway.call("/readyz").status == 503
        assert gateway.call("/healthz").status == 200
        got = gateway.chat()
        assert (got.status, got.error["code"]) == (503, "not_ready")
        near.engine("e1", "bot@1")
        near.route((1, 10_000))
        wire.mend()
        until(lambda: gateway.chat().status == 200, 10)
