"""The scene every monitor test plays in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from monitor.engine import FakeEngine, fake_engine
from monitor.scene import Scene, TickingClock
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with fake_engine() as running:
        yield running


@pytest.fixture
def scene(registry_home: Path, engine: FakeEngine) -> Iterator[Scene]:
    """`bot@1` is champion; nothing was asked yet."""
    clock = TickingClock()
    settings = RegistrySettings(home=registry_home)
    with Registry.open(settings, clock=clock) as registry, httpx.Client(timeout=5, trust_env=False) as client:
        made = Scene(registry, clock, engine, client)
        made.promote(1)
        yield made


@pytest.fixture
def free() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
