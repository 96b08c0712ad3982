"""Controllers that are killed with SIGKILL, two at a time: each step is written once, and the rollout is completed.

Each process dies right before or right after the commit of one of its own transactions (claims, steps, the alias
watch's), so that over the generations every gap between two writes is hit. Engine, gateway and users are a thread.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from registry.mortal import begun, die
from registry.world import CHANGE, World, set_up, splits
from tuneloop.registry import Registry
from tuneloop.registry.database import Database
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.rollout import RolloutPlan, RolloutState, RolloutStep
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.settings import ControllerSettings, RegistrySettings

PLAN = RolloutPlan(
    steps=tuple(RolloutStep(weight_bp=share_bp, hold_s=0.2, min_samples=5) for share_bp in (1_000, 5_000)),
    limits=Limits(feedback_margin=0.2, error_margin=0.1),
    give_up_s=120,
)
ENDS_S = 240  # it takes a few seconds, and a slow machine longer


LEASE_S = 0.6


def die_around(number: int) -> None:
    """From here on this process is killed around its `number`-th writing transaction: right before it commits where
    that is negative, right after where it is positive. One that raises and is rolled back lets nobody live on."""
    writing, lock, seen = Database.writing, threading.Lock(), iter(range(1, 1_000_000))

    @contextmanager
    def counted(database: Database) -> Iterator[object]:
        with lock:
            mine = next(seen)
        try:
            with writing(database) as connection:
                yield connection
                if 0 < -number <= mine:
                    die()
        finally:
            if 0 < number <= mine:
                die()

    Database.writing = counted  # type: ignore[method-assign, assignment]


def control(settings: RegistrySettings, dies_around: int) -> None:
    """A controller in a process of its own, until it is killed."""
    die_around(dies_around)
    with Registry.open(settings, upgrade=False) as registry:
        eager = ControllerSettings(every_s=0.02, aliases_every_s=0.2)
        Controller(registry, eager, lease_s=LEASE_S).run(threading.Event())


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
    dice, alive, ends = random.Random(7), list[BaseProcess](), list[int | None]()
    # At most two live at once, so four of the first five are dead before one lives that could do it all, however quick.
    lives = chain((1, -2, 2, -1, 3), (dice.choice((-1, 1)) * dice.randint(1, 6) for _ in count()))
    deadline = time.monotonic() + ENDS_S
    try:
        while killed.rollouts.get(declared.id).state is RolloutState.RUNNING and time.monotonic() < deadline:
            ends += [process.exitcode for process in alive if not process.is_alive()]
            alive = [process for process in alive if process.is_alive()]
            if len(alive) < 2:  # a life of one transaction is a claim alone; of six, a step or two
                alive.append(begun(control, killed.settings, next(lives)))
            time.sleep(0.02)
    finally:
        for process in alive:
            process.kill()
            process.join()
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
    assert set(ends) == {-signal.SIGKILL}
    assert len(ends) >= 4, "several were killed on the way, or nothing was shown"
