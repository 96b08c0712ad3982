"""One bad adapter keeps no other from being served, whether vLLM refuses it, answers with an error, or dies of it.

The keeper talks HTTP to a server that answers as vLLM does; what a real vLLM does is in test_live_engine.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from tests_support import free_port
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import AdapterState, Version
from tuneloop.registry.versions.adapters import Base, Limits
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.keeper import STEPS_BACK, Keeper
from tuneloop.serve.engine.reconcile import Held
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.turn import LoadTurn
from tuneloop.serve.engine.wanted import RegistryWatch, Sight
from tuneloop.serve.engine.whole import WholeKeeper

BASE = Base("tiny", "sha256:base", "sha256:template")


class FakeVllm:
    """Lists, loads and unloads adapters; answers for `faulty` with 500, and is dead once `deadly` was asked."""

    def __init__(self, *, faulty: str = "", deadly: str = "") -> None:
        self.faulty, self.deadly = faulty, deadly
        self.adapters: list[str] = []
        self.dead = False
        self.asked = 0  # for a token

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
        await runner.cleanup()

    def restart(self) -> None:
        self.dead, self.adapters = False, []

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in ("tiny", *self.adapters)]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.dead else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="vllm:iteration_tokens_total_sum 1\n")

    async def _load(self, request: web.Request) -> web.Response:
        self.adapters.append((await request.json())["lora_name"])
        return web.Response()

    async def _unload(self, request: web.Request) -> web.Response:
        self.adapters.remove((await request.json())["lora_name"])
        return web.Response()

    async def _complete(self, request: web.Request) -> web.Response:
        self.asked += 1
        name = (await request.json())["model"]
        self.dead = self.dead or name == self.deadly
        wrong = self.dead or name == self.faulty
        return web.Response(status=500 if wrong else 200, text='{"message":"shapes differ","code":500}')


def version(number: int) -> Version:
    return Version(
        model="m",
        version=number,
        kind="adapter",
        base=BASE.name,
        base_digest=BASE.digest,
        template_digest=BASE.template_digest,
        data_digest="d",
        data_rows=1,
        recipe_digest="r",
        code_commit="c",
        run_id="run",
        artifact_digest=f"sha256:{number}",
        artifact_bytes=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


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


def test_an_adapter_that_vllm_answers_with_an_error_fails_and_the_next_is_loaded(tmp_path: Path) -> None:
    vllm, said = FakeVllm(faulty="m@1"), list[str]()

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
            assert "shapes differ" in keeper.held["m@1"].reason
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
