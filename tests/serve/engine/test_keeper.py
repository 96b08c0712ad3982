"""One bad adapter keeps no other from being served, whether vLLM refuses it, answers with an error, or dies of it.

The keeper talks HTTP to a server that answers as vLLM does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest

from serve.engine.fake_vllm import BASE, FakeVllm, version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import AdapterState, Version
from tuneloop.registry.versions.adapters import Limits
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.keeper import STEPS_BACK, Keeper
from tuneloop.serve.engine.reconcile import Held
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.turn import LoadTurn
from tuneloop.serve.engine.wanted import RegistryWatch, Sight
from tuneloop.serve.engine.whole import WholeKeeper

SIGHT = Sight((version(1), version(2)))


def keeper_of(client: EngineClient, home: Path, said: list[str]) -> Keeper:
    """A keeper that has fetched two adapters."""

    def away() -> Registry:
        raise Unavailable("away")

    watch = RegistryWatch(away, engine_id="e1", base=BASE, home=home)
    limits = Limits(BASE, 16, {})
    turn = LoadTurn(lambda: away().database, BASE.digest, say=said.append)
    keeper = Keeper(EngineSettings(), limits, client, watch, base="tiny", root=home, say=said.append, turn=turn)
    keeper.held = {f"m@{number}": Held(AdapterState.LOADING, home / str(number)) for number in (1, 2)}
    return keeper


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"refused": "m@1"}, "vLLM refuses to load m@1 (400): Invalid rank of 'm@1': 64 > 16"),
        ({"faulty": "m@1"}, "vLLM gives no token of m@1 (500): shapes differ"),
    ],
)
def test_an_adapter_that_vllm_refuses_or_answers_with_an_error_fails_with_its_reason_and_the_next_is_loaded(
    tmp_path: Path, fault: dict[str, str], why: str
) -> None:
    vllm, said = FakeVllm(**fault), list[str]()

    async def act() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            keeper = keeper_of(client, tmp_path, said)
            await keeper.step(SIGHT)
            await keeper.step(SIGHT)
            assert keeper.ready
            assert {name: held.state for name, held in keeper.held.items()} == {
                "m@1": AdapterState.FAILED,
                "m@2": AdapterState.READY,
            }
            assert keeper.held["m@1"].reason == why
            assert vllm.adapters == ["m@2"], "a failed adapter takes no slot"

    asyncio.run(act())
    assert "ready with m@2" in said


def test_an_adapter_of_which_vllm_dies_twice_is_given_up_and_the_others_are_served(tmp_path: Path) -> None:
    vllm, said = FakeVllm(deadly="m@1"), list[str]()

    async def act() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            keeper = keeper_of(client, tmp_path, said)
            for _ in range(2):
                for _ in range(3):  # the supervisor takes some looks to see that it is dead
                    try:
                        await keeper.step(SIGHT)
                    except Unavailable:
                        continue
                assert not keeper.ready
                vllm.restart()
                keeper.reborn()
            await keeper.step(SIGHT)
            await keeper.step(SIGHT)
            assert keeper.ready
            assert keeper.held["m@2"].state is AdapterState.READY
            assert keeper.held["m@1"].state is AdapterState.FAILED
            assert "vLLM died 2 times" in keeper.held["m@1"].reason
            await keeper.step(Sight((version(2),)))
            assert "m@1" not in keeper.held, "off the route, it is forgotten and may come again"

    asyncio.run(act())
    assert "ready with m@2" in said


def test_a_fetch_under_way_when_vllm_dies_is_waited_for_and_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm, asked, go = FakeVllm(), list[str](), threading.Event()

    async def act() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            keeper = keeper_of(client, tmp_path, [])
            keeper.held = {}

            def fetched(one: Version) -> Path:
                asked.append(one.name)
                go.wait(10)
                return tmp_path

            monkeypatch.setattr(keeper, "_fetch_and_check", fetched)
            await keeper.step(SIGHT)
            for _ in range(2):
                vllm.restart()
                keeper.reborn()
                await keeper.step(SIGHT)
            assert {held.state for held in keeper.held.values()} == {AdapterState.FETCHING}
            assert not keeper.due.is_set()
            go.set()
            await asyncio.gather(*keeper._fetches.values())
            assert keeper.due.is_set(), "the agent would load it at its next look only"
            await keeper.step(SIGHT)
            assert {held.state for held in keeper.held.values()} == {AdapterState.READY}

    asyncio.run(act())
    assert sorted(asked) == ["m@1", "m@2"], "each once"


def test_a_vllm_that_dies_of_something_else_gives_no_adapter_up(tmp_path: Path) -> None:
    vllm = FakeVllm()

    async def act() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            keeper = keeper_of(client, tmp_path, [])
            for _ in range(4):
                await keeper.step(SIGHT)
                vllm.restart()
                keeper.reborn()
            await keeper.step(SIGHT)
            assert {held.state for held in keeper.held.values()} == {AdapterState.READY}

    asyncio.run(act())


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of single threads are Linux's")
def test_fetching_and_checking_come_after_whatever_else_wants_the_cores_and_the_agent_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm, seen = FakeVllm(), dict[str, int]()

    def note(who: str) -> None:
        seen[who] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def act() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            keeper = keeper_of(client, tmp_path, [])
            keeper.held = {}

            def fetched(_: Version) -> Path:
                note("fetching")
                hashing = threading.Thread(target=note, args=("a thread of the fetch",))
                hashing.start()
                hashing.join()
                return tmp_path

            monkeypatch.setattr(keeper, "_fetch_and_check", fetched)
            keeper.prepare()
            await keeper.step(SIGHT)
            await asyncio.gather(*keeper._fetches.values())
            note("the agent")
            await asyncio.to_thread(note, "another thread of the agent")

    before = os.getpriority(os.PRIO_PROCESS, 0)
    asyncio.run(act())
    behind = min(19, before + STEPS_BACK)
    assert seen == {
        "fetching": behind,
        "a thread of the fetch": behind,
        "the agent": before,
        "another thread of the agent": before,
    }


def test_whole_weights_that_vllm_refuses_are_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    vllm, said, now = FakeVllm(faulty="m@1"), list[str](), [100.0]

    async def run() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            keeper = WholeKeeper("m@1", client, say=said.append, clock=lambda: now[0])
            tried = []
            for second in range(40):
                now[0], before = 100.0 + second, vllm.asked
                await keeper.step(Sight(()))
                await keeper.step(Sight(()))
                if vllm.asked > before:
                    tried.append(second)
                assert vllm.asked - before <= 1
            assert tried == [0, 2, 6, 14, 30]
            assert keeper.held["m@1"].state is AdapterState.FAILED
            vllm.faulty = ""
            keeper.reborn()
            await keeper.step(Sight(()))
            assert keeper.ready, "another vLLM is asked at once"

    asyncio.run(run())
    assert [one.partition(":")[0] for one in said[:-1]] == ["m@1 failed, trying again from time to time"]
