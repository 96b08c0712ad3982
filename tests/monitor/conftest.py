"""The scene every monitor test plays in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.engine import FakeEngine, fake_engine
from monitor.scene import Scene, opened
from tests_support import free_port


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with fake_engine() as running:
        yield running


@pytest.fixture
def scene(registry_home: Path, engine: FakeEngine) -> Iterator[Scene]:
    """`bot@1` is champion; nothing was asked yet."""
    with opened(registry_home, engine) as made:
        yield made


@pytest.fixture
def free() -> int:
    """A port nobody listens on."""
    return free_port()
