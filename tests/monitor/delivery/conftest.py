"""What every test of deliveries needs: a registry on a clock the test moves, and somebody who is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.delivery.servers import HttpReceiver, http_receiver
from tests_support import Clock
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings


@pytest.fixture
def ours(registry_home: Path, clock: Clock) -> Iterator[Registry]:
    with Registry.open(RegistrySettings(home=registry_home), clock=clock) as opened:
        yield opened


@pytest.fixture
def hook() -> Iterator[HttpReceiver]:
    with http_receiver() as running:
        yield running
