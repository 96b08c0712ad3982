"""Engines of one base load adapters one after another, so that the others answer meanwhile.

The agents' keepers are real and share one registry; what they load into is a server that answers as vLLM does.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from serve.engine.fake_vllm import BASE, FakeVllm, version
from tests_support import Clock
from tuneloop.registry import Registry
from tuneloop.registry.database import Database
from tuneloop.registry.errors import DatabaseAway
from tuneloop.registry.nouns import AdapterState
from tuneloop.registry.versions.adapters import Limits
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.keeper import Keeper
from tuneloop.serve.engine.reconcile import Held
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.turn import PATIENCE_S, LoadTurn
from tuneloop.serve.engine.wanted import RegistryWatch, Sight

BEFORE, AFTER = Sight((version(1),)), Sight((version(1), version(2), version(3)))


@dataclass
class Floor:
    """Where engines load: who is at it, and the most at once."""

    at_it: set[int] = field(default_factory=set)
    most: int = 0
    met: asyncio.Event | None = None  # loads last until two engines are at it; None: a moment


class SlowVllm(FakeVllm):
    """A load takes until another engine has begun one, or has had its chance to."""

    def __init__(self, number: int, floor: Floor) -> None:
        super().__init__()
        self.number, self.floor = number, floor

    async def _load(self, request: web.Request) -> web.Response:
        self.floor.at_it.add(self.number)
        self.floor.most = max(self.floor.most, len(self.floor.at_it))
        if self.floor.met is None:
            await asyncio.sleep(0.05)  # not decisive: what is counted is who else came, however late
        else:
            if self.floor.most > 1:
                self.floor.met.set()
            await asyncio.wait_for(self.floor.met.wait(), 60.0)
        answer = await super()._load(request)
        self.floor.at_it.discard(self.number)
        return answer


def keeper_of(client: EngineClient, home: Path, registry: Registry, turn: LoadTurn) -> Keeper:
    """A keeper that has fetched `m@1`."""
    watch = RegistryWatch(lambda: registry, engine_id="e", base=BASE, home=home)
    keeper = Keeper(
        EngineSettings(), Limits(BASE, 16, {}), client, watch, base="tiny", root=home, say=lambda _: None, turn=turn
    )
    keeper.held = fetched(home, 1)
    return keeper


def fetched(home: Path, *numbers: int) -> dict[str, Held]:
    return {f"m@{number}": Held(AdapterState.LOADING, home / str(number)) for number in numbers}


def turn_of(registry: Registry) -> LoadTurn:
    return LoadTurn(lambda: registry.database, BASE.digest, say=lambda _: None)


async def fleet_of(registry: Registry, home: Path, floor: Floor, stack: AsyncExitStack) -> list[Keeper]:
    keepers = []
    for number in range(3):
        url = await stack.enter_async_context(SlowVllm(number, floor).serving())
        client = await stack.enter_async_context(EngineClient(url))
        keepers.append(keeper_of(client, home, registry, turn_of(registry)))
    return keepers


async def until_all_serve(keepers: list[Keeper], sight: Sight) -> None:
    names = {one.name for one in sight.wanted}

    def serves(keeper: Keeper) -> bool:
        return {name for name, held in keeper.held.items() if held.state is AdapterState.READY} >= names

    for _ in range(200):
        await asyncio.gather(*(keeper.step(sight) for keeper in keepers))
        if all(keeper.ready and serves(keeper) for keeper in keepers):
            return
    raise AssertionError("they never get their turn")


def test_engines_that_serve_load_one_after_another_and_all_get_there(registries: Registry, tmp_path: Path) -> None:
    floor = Floor()

    async def act() -> None:
        async with AsyncExitStack() as stack:
            keepers = await fleet_of(registries, tmp_path, floor, stack)
            floor.met = asyncio.Event()
            await until_all_serve(keepers, BEFORE)
            assert floor.most > 1, "those that serve nobody yet wait for nobody"
            floor.most, floor.met = 0, None
            for keeper in keepers:
                keeper.held |= fetched(tmp_path, 2, 3)
            await until_all_serve(keepers, AFTER)

    asyncio.run(act())
    assert floor.most == 1


def test_an_engine_loads_without_its_turn_when_the_registry_is_away_or_another_holds_it_too_long(
    registry: Registry, clock: Clock, tmp_path: Path
) -> None:
    said: list[str] = []
    holder, now = turn_of(registry), [0.0]

    def away() -> Database:
        raise DatabaseAway("the database is away")

    async def act() -> None:
        cut_off = LoadTurn(away, BASE.digest, say=said.append)
        async with cut_off.taken() as mine:
            assert mine
        waiting = LoadTurn(lambda: registry.database, BASE.digest, say=said.append, clock=lambda: now[0])
        other_base = LoadTurn(lambda: registry.database, "sha256:other", say=said.append)
        async with holder.taken() as held:
            assert held
            async with other_base.taken() as mine:
                assert mine, "another base's engines are no others"
            found = []
            for now[0] in (0.0, PATIENCE_S - 1, PATIENCE_S, PATIENCE_S + 1):
                async with waiting.taken() as mine:
                    found.append(mine)
            assert found == [False, False, True, False]
        async with waiting.taken() as mine:
            assert mine, "it ends with its holder's block"

    asyncio.run(act())
    assert len(said) == 2
    assert said[0].startswith("loading without a turn, others may load too: the database is away")
    assert said[1] == "loading without a turn: waited 120 s for it"


def test_an_engine_whose_load_went_away_meanwhile_waits_anew(registry: Registry, tmp_path: Path) -> None:
    said: list[str] = []
    holder, now = turn_of(registry), [0.0]
    waiting = LoadTurn(lambda: registry.database, BASE.digest, say=said.append, clock=lambda: now[0])

    async def act() -> None:
        async with FakeVllm().serving() as url, EngineClient(url) as client:
            keeper = keeper_of(client, tmp_path, registry, waiting)
            await until_all_serve([keeper], BEFORE)
            async with holder.taken() as held:
                assert held
                for now[0], sight in ((0.0, AFTER), (PATIENCE_S / 2, BEFORE), (2 * PATIENCE_S, AFTER)):
                    keeper.held |= fetched(tmp_path, 2, 3)
                    await keeper.step(sight)
                states = [keeper.held["m@2"].state]
                now[0] += PATIENCE_S
                await keeper.step(AFTER)
                states.append(keeper.held["m@2"].state)
                assert states == [AdapterState.LOADING, AdapterState.READY]

    asyncio.run(act())
    assert said == ["loading without a turn: waited 120 s for it"]
