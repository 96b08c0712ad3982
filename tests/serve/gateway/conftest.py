"""A world around one gateway, on SQLite; the engines are small servers that can fail on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serve.gateway.wire import Wire
from serve.gateway.world import World, make_world
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings


@pytest.fixture
def world(registry_home: Path) -> Iterator[World]:
    """An empty registry on SQLite, one API key, no engine yet."""
    with ExitStack() as stack:
        yield make_world(RegistrySettings(home=registry_home), stack)


@pytest.fixture
def far_world(tmp_path: Path, postgres: Any) -> Iterator[tuple[World, World, Wire]]:
    """The world on PostgreSQL: as the gateway sees it, through a wire that can be cut, and as everybody else does."""
    url = postgres.migrated_database()
    wire = Wire(postgres.port)
    with ExitStack() as stack:
        near = make_world(RegistrySettings(home=tmp_path / "home", database_url=url), stack)
        stack.callback(wire.cut)
        wire.mend()
        through = RegistrySettings(home=tmp_path / "home", database_url=url.replace(str(postgres.port), str(wire.port)))
        yield near, World(stack.enter_context(Registry.open(through)), stack, near.engines, near.key), wire
