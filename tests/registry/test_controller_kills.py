"""Controllers that are killed with SIGKILL, two at a time: each step is written once, and the rollout is completed.

Each process dies right before or right after the commit of one of its own transactions (claims, steps, the alias
watch's), so that over the generations every gap between two writes is hit. Engine, gateway and users are a thread.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.world import CHANGE, World, set_up, splits
from tuneloop.registry import Registry
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.rollout import RolloutPlan, RolloutState, RolloutStep
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.settings import RegistrySettings

PLAN = RolloutPlan(
    steps=tuple(RolloutStep(weight_bp=share_bp, hold_s=0.2, min_samples=5) for share_bp in (1_000, 5_000)),
    limits=Limits(feedback_margin=0.2, error_margin=0.1),
    give_up_s=120,
)
ENDS_S = 60


class Nursery:
    """Starts controllers, and knows which have died."""

    def __init__(self, registry: Registry) -> None:
        settings = registry.settings
        script = Path(__file__).parent / "controller_process.py"
        self._parent = subprocess.Popen(
            [sys.executable, str(script), str(settings.home), settings.database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        os.set_blocking(self._out, False)
        self._said = ""
        self.started: list[int] = []
        self.gone: list[int] = []

    @property
    def _out(self) -> int:
        assert self._parent.stdout is not None
        return self._parent.stdout.fileno()

    @property
    def alive(self) -> int:
        """How many live, or are about to."""
        self._read()
        return self.asked - len(self.gone)

    asked = 0

    def start(self, dies_around: int) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.write(f"{dies_around}\n")
        self._parent.stdin.flush()
        self.asked += 1

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._read()
        for pid in set(self.started) - set(self.gone):
            os.kill(pid, signal.SIGKILL)
        self._parent.wait(10)
        assert self._parent.stdout is not None
        self._parent.stdout.close()

    def _read(self) -> None:
        try:
            self._said += os.read(self._out, 65_536).decode()
        except BlockingIOError:
            return
        *lines, self._said = self._said.split("\n")
        for line in lines:
            (self.gone if line.startswith("gone ") else self.started).append(int(line.removeprefix("gone ")))


@pytest.fixture(params=["sqlite", "postgresql"])
def killed(request: pytest.FixtureRequest, published_home: Path) -> Iterator[Registry]:
    """A registry on either database, on the real clock, in a world that lives."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres").migrated_database()
    with Registry.open(RegistrySettings(home=published_home, database_url=url)) as opened:
        set_up(opened)
        running = World(opened)
        running.score, running.beat_s = {1: 0.5, 2: 0.8}, 0.2  # a look at few records is quick
        running.start()
        yield opened
        running.close()


def test_controllers_killed_between_any_two_writes_write_each_step_once(killed: Registry) -> None:
    declared = declare(killed, "bot", 2, PLAN, CHANGE)
    dice, nursery = random.Random(7), Nursery(killed)
    deadline = time.monotonic() + ENDS_S
    try:
        while killed.rollouts.get(declared.id).state is RolloutState.RUNNING and time.monotonic() < deadline:
            if nursery.alive < 2:  # a life of one transaction is a claim alone; of six, a step or two
                nursery.start(dice.choice((-1, 1)) * dice.randint(1, 6))
            time.sleep(0.02)
    finally:
        nursery.close()
    over = killed.rollouts.get(declared.id)
    assert over.state is RolloutState.SHIPPED, over
    assert splits(killed) == [
        {1: 10_000},
        {2: 0, 1: 10_000},
        {2: 1_000, 1: 9_000},
        {2: 5_000, 1: 5_000},
        {1: 0, 2: 10_000},
    ]
    assert [(taken.weight_bp, taken.revision) for taken in over.taken] == [
        (1_000, 3),
        (5_000, 4),
        (10_000, 5),
    ]
    assert len(killed.audit.entries("bot", action="rollout.step")) == 2
    assert len(killed.audit.entries("bot@2", action="rollout.verdict")) == 1
    assert killed.audit.verify().faults == ()
    assert killed.retraining.get("rt_1").state == "shipped"
    assert len(nursery.gone) >= 3, "several were killed on the way, or nothing was shown"
