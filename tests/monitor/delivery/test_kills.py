"""Killed at any point: nothing is told under two keys, and nothing is never told.

One process imports everything, then, for each point there is, forks a monitor on a database of its own that SIGKILL
ends there, and another that goes on. Points are before every statement that writes, before every commit, and before
and after every request; between them a monitor only reads, or has what it wrote in a transaction that nobody sees.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from monitor.delivery.servers import HttpReceiver, http_receiver
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings

KILLER = Path(__file__).with_name("killed.py")


@dataclass(frozen=True)
class Ran:
    """What killed.py left: the homes and what their receivers were told."""

    home: Path
    hook: HttpReceiver
    kills: dict[str, int]


def faults(ran: Ran, what: str) -> Iterator[str]:
    """What people would complain of."""
    for point in range(1, ran.kills[what] + 1):
        with Registry.open(RegistrySettings(home=ran.home / what / str(point)), upgrade=False) as registry:
            rows = {row.id: row for row in registry.outbox.all()}
        if sorted(row.transition for row in rows.values()) != ["opened", "resolved"]:
            yield f"killed at {point}: {sorted(row.transition for row in rows.values())} are to be told"
        bodies = [json.loads(told.body) for told in ran.hook.told if told.path.endswith(f"/{what}/{point}")]
        keys = [body["delivery"] for body in bodies]
        if strange := set(keys) - set(rows):
            yield f"killed at {point}: told under the keys {sorted(strange)} that nobody wrote down"
        if never := [row.transition for row in rows.values() if row.id not in keys]:
            yield f"killed at {point}: {never} never told"
        if list(dict.fromkeys(body["transition"] for body in bodies)) not in (["opened", "resolved"], []):
            yield f"killed at {point}: told in the wrong order"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    home = tmp_path_factory.mktemp("killed")
    with http_receiver() as hook:
        command = [sys.executable, str(KILLER), str(home), hook.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        yield Ran(home, hook, dict(zip(("right", "broken"), map(int, done.stdout.split()), strict=True)))


def test_killed_at_every_point_everything_is_told_under_one_key(ran: Ran) -> None:
    assert ran.kills["right"] > 20, "as many as there are points"
    assert list(faults(ran, "right")) == []
    told = [one for one in ran.hook.told if "/right/" in one.path]
    assert len(told) > 2 * ran.kills["right"], "some were cut off between sending and noting it"


def test_a_sender_that_notes_before_it_sends_would_be_seen(ran: Ran) -> None:
    assert any("never told" in fault for fault in faults(ran, "broken"))
