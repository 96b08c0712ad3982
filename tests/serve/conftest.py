"""One real vLLM for all serving tests: starting it takes a minute, so it is shared and every test leaves it serving."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.engine_support import EngineAgent, publish_adapter, write_adapter
from tests_support import free_port
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings


@pytest.fixture(scope="session")
def engine_agent(smollm2: Path, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineAgent]:
    """A running agent with `python-helper@1` (all traffic) and `@2` (staged), on a registry of its own in SQLite."""
    home = tmp_path_factory.mktemp("engine")
    shutil.copy(empty_mlflow, home)
    with Registry.open(RegistrySettings(home=home)) as registry:
        for seed in (1, 2):
            publish_adapter(registry, write_adapter(home / f"adapter-{seed}", smollm2, seed=seed), smollm2)
        agent = EngineAgent(registry, smollm2, home, free_port())
        agent.route({2: 0, 1: 10_000})
        agent.start()
        try:
            agent.wait_ready()
            yield agent
        finally:
            agent.stop()
