"""A heartbeat waits for nothing but the database."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tuneloop.registry import Registry
from tuneloop.registry.versions.adapters import Base, Limits
from tuneloop.serve.engine.agent import Agent
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.keeper import Keeper
from tuneloop.serve.engine.launch import Launch
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.supervisor import Supervisor
from tuneloop.serve.engine.turn import LoadTurn
from tuneloop.serve.engine.wanted import RegistryWatch

BASE = Base("tiny", "sha256:base", "sha256:template")


def test_a_heartbeat_is_sent_while_everything_else_hangs(registry: Registry, tmp_path: Path) -> None:
    settings = EngineSettings(id="e1")
    hung = threading.Event()

    async def act() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        waiting = asyncio.create_task(asyncio.to_thread(hung.wait))
        async with EngineClient(settings.local_url) as client:
            launch = Launch((), {})
            supervisor = Supervisor(settings, launch, client, base="tiny", home=tmp_path, say=print)
            watch = RegistryWatch(lambda: registry, engine_id="e1", base=BASE, home=tmp_path)
            limits = Limits(BASE, 16, {})
            turn = LoadTurn(lambda: registry.database, BASE.digest, say=print)
            keeper = Keeper(settings, limits, client, watch, base="tiny", root=tmp_path, say=print, turn=turn)
            agent = Agent(settings, BASE, supervisor, keeper, watch, say=print)
            beating = asyncio.create_task(agent._beat_for_ever())
            for _ in range(100):
                await asyncio.sleep(0.05)
                if registry.fleet.engines():
                    break
            beating.cancel()
            hung.set()
            await asyncio.gather(beating, waiting, return_exceptions=True)

    asyncio.run(act())
    assert [engine.id for engine in registry.fleet.engines()] == ["e1"]
