"""An engine that takes connections and answers nothing gets no new requests; one that is only slow gets them."""

from __future__ import annotations

import pytest

from serve.gateway.test_answers import recorded
from serve.gateway.test_clients_that_leave import connect
from serve.gateway.test_half_open import relayed
from serve.gateway.world import World, until
from tuneloop.serve.gateway import hangs
from tuneloop.serve.gateway.load import Load
from tuneloop.serve.gateway.snapshot import Target


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangs, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(hangs, "ANSWER_WITHIN_S", 0.5)


def told(caplog: pytest.LogCaptureFixture, what: str) -> bool:
    return any(what in record.getMessage() for record in caplog.records)


def test_an_engine_that_answers_nothing_gets_no_new_requests_until_it_answers(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    far = world.engine("e1", "bot@1")
    world.engine("e2", "bot@1")
    with relayed(far.url) as (wire, far.url):
        world.beat()
        world.route((1, 10_000))
        gateway = world.gateway()
        wire.freeze()
        with connect(gateway, stream=False):
            until(lambda: told(caplog, "engine e1 answers nothing"), 20)
        until(lambda: gateway.metric("tuneloop_requests_in_flight") == 0)
        for stream in (False, True):  # with nothing in flight it would be the first choice
            got = gateway.chat(stream=stream)
            assert (got.status, recorded(world, got.headers["x-request-id"]).engine) == (200, "e2")
        wire.thaw()
        until(lambda: told(caplog, "engine e1 answers again"), 20)
        assert recorded(world, gateway.chat().headers["x-request-id"]).engine == "e1"


def test_an_engine_with_a_long_prefill_is_no_hang(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hangs, "ANSWER_WITHIN_S", 2.0)
    engine = world.engine("e1", "bot@1", fault="never_answers")
    world.route((1, 10_000))
    gateway = world.gateway(first_byte_timeout_s=3)
    assert gateway.chat(stream=True).status == 504
    assert engine.health_asked > 2
    assert not told(caplog, "answers nothing")


def test_only_engines_that_begin_no_answer_are_asked() -> None:
    load, busy, idle = Load(), Target(1, "bot@1", "e1", "u"), Target(1, "bot@1", "e2", "u")
    load.carry(busy)
    assert load.quiet() == {"e1"}
    load.begun(busy)
    load.begun(idle)
    assert load.quiet() == set()
    assert load.quiet() == {"e1"}
    load.hung.add("e1")
    assert load.aside() == {"e1"}
