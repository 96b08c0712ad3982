"""Puts an engine agent together from its settings and runs it; what can be refused is refused before vLLM starts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from tuneloop.registry import Registry
from tuneloop.registry.nouns import Version
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions import adapters
from tuneloop.registry.versions.artifacts import base_digest, template_digest
from tuneloop.serve.engine import guard
from tuneloop.serve.engine.agent import Agent
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.keeper import Keeper
from tuneloop.serve.engine.launch import build, check_weights, device_of, refuse_key
from tuneloop.serve.engine.ports import ensure_port_free, hold_port
from tuneloop.serve.engine.precision import choose_precision, cpu_features
from tuneloop.serve.engine.process import clear_leftovers, sole_agent
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.supervisor import Supervisor
from tuneloop.serve.engine.turn import LoadTurn
from tuneloop.serve.engine.wanted import RegistryWatch
from tuneloop.serve.engine.whole import WholeKeeper, WholeWatch, fetch_whole


def run_engine(
    settings: EngineSettings, registry: RegistrySettings, *, start: Path, say: Callable[[str], None]
) -> None:
    """Run the agent in the foreground until it is told to stop.

    Raises:
        InvalidInput: no base, no engine environment, a wrong setting.
        Conflict: the port or the id is taken.
        Unavailable: vLLM does not start.
    """
    refuse_key(os.environ)
    given = None if settings.version else settings.base_folder()
    python = settings.engine_python(start)
    device = device_of(python)
    home = (registry.home / "engines" / settings.engine_id).resolve()
    with sole_agent(home), hold_port(settings.port):
        if found := clear_leftovers(home):
            say(f"ended {found} processes that an agent before this one left behind")
        ensure_port_free(settings.host, settings.port)

        def open_registry() -> Registry:
            return Registry.open(registry)

        version: Version | None = None
        if given is None:
            version, folder = fetch_whole(settings.version, open_registry, home, say=say)
            settings = settings.model_copy(update={"max_loras": 0, "pins": ()})
        else:
            folder = given
        served_as = folder.name if version is None else version.name
        base = adapters.Base(served_as, base_digest(folder), template_digest(folder))
        check_weights(folder, settings, device)
        precision = choose_precision(settings.dtype, device, cpu_features())
        say(f"dtype: {precision}")
        settings = settings.model_copy(update={"dtype": precision.dtype})
        launch = build(
            settings,
            base=folder,
            served_as=served_as,
            python=python,
            device=device,
            cores=len(os.sched_getaffinity(0)),
            plugins=guard.install(home),
            environment=os.environ,
        )

        async def run() -> None:
            async with EngineClient(settings.local_url) as client:
                supervisor = Supervisor(settings, launch, client, base=base.name, home=home, say=say)
                watch: RegistryWatch | WholeWatch
                keeper: Keeper | WholeKeeper
                if version is not None:
                    watch = WholeWatch(open_registry, engine_id=settings.engine_id, version=version)
                    keeper = WholeKeeper(version.name, client, say=say)
                else:
                    watch = adapter_watch = RegistryWatch(
                        open_registry, engine_id=settings.engine_id, base=base, home=home, pins=settings.pins
                    )
                    turn = LoadTurn(lambda: adapter_watch.registry.database, base.digest, say=say)
                    limits = adapters.Limits(base, settings.max_lora_rank, adapters.base_shapes(folder))
                    root = home / "adapters"
                    keeper = Keeper(settings, limits, client, watch, base=base.name, root=root, say=say, turn=turn)
                await Agent(settings, base, supervisor, keeper, watch, say=say).run()

        asyncio.run(run())
