"""A rollout and an experiment of one model never run together, however close to each other they are begun.

Two real threads on both databases, held where each has seen nothing of the other: who is first is the machine's to say,
that only one is let run is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from registry.experiment_traffic import NO_PLAN
from registry.rolling import PLAN
from registry.world import CHANGE, set_up, splits
from tuneloop.registry import Registry
from tuneloop.registry.errors import Refused
from tuneloop.registry.experiments import conduct
from tuneloop.registry.experiments.declaration import Declaration, Primary
from tuneloop.registry.experiments.store import Experiments
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.rollouts.steering import declare, resume
from tuneloop.registry.rollouts.store import Rollouts
from tuneloop.registry.routes.promotion import set_route

METRIC = Primary(kind="binary", measure="error", goal="lower", minimum_effect=0.1)
DECLARED = Declaration(model="bot", hypothesis="h", arms={1: 5_000, 2: 5_000}, control=1, primary=METRIC)
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.fixture
def draft(registries: Registry) -> str:
    """`bot@1` serves, `bot@2` is approved, and an experiment of both waits to be started."""
    set_up(registries)
    return registries.experiments.new(DECLARED, NO_PLAN, by="ada", reason="r").id


def outcome(act: Callable[..., object], *arguments: object) -> str:
    """What became of it: `runs`, or why it was refused."""
    try:
        act(*arguments)
    except Refused as no:
        return str(no)
    return "runs"


def begin_both(registry: Registry, draft: str) -> list[str]:
    """A rollout and an experiment of `bot`, begun at the same time."""
    with ThreadPoolExecutor(2) as pool:
        rollout = pool.submit(outcome, declare, registry, "bot", 2, PLAN, CHANGE)
        experiment = pool.submit(outcome, conduct.start, registry, draft, CHANGE)
        return [rollout.result(timeout=60), experiment.result(timeout=60)]


def running(registry: Registry) -> list[bool]:
    """Whether a rollout and whether an experiment runs."""
    rollouts = registry.rollouts.all("bot", states={RolloutState.RUNNING})
    return [bool(rollouts), registry.experiments.running("bot") is not None]


def test_a_rollout_declared_while_an_experiments_split_reaches_the_gateways_keeps_it_from_starting(
    registries: Registry, draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waited(*_: object) -> list[str]:
        with ThreadPoolExecutor(1) as somebody_else:
            declared = somebody_else.submit(outcome, declare, registries, "bot", 2, PLAN, CHANGE)
            assert declared.result(timeout=60) == "runs"
        return []

    monkeypatch.setattr(registries.fleet, "wait_applied", waited)
    with pytest.raises(Refused, match=r"bot@2 is being rolled out \(ro_.*\), and an experiment would change its split"):
        conduct.start(registries, draft, CHANGE)
    assert running(registries) == [True, False]
    assert splits(registries)[-1] == {2: 5_000, 1: 5_000}, "which the rollout goes on from"


def test_of_two_that_each_saw_nothing_of_the_other_one_runs(
    registries: Registry, draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)

    def met(act: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            both.wait()
            return act(*arguments, **named)

        return called

    monkeypatch.setattr(Rollouts, "declare", met(Rollouts.declare))
    monkeypatch.setattr(Experiments, "start", met(Experiments.start))
    said = begin_both(registries, draft)
    assert sorted(one == "runs" for one in said) == [False, True]
    assert running(registries) == [one == "runs" for one in said]


def test_a_rollout_that_is_being_declared_keeps_an_experiment_off_the_split(
    registries: Registry, draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is declared after the experiment has looked for one, and before the split is written."""
    write = registries.routes.write

    def declared_before(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        declare(registries, "bot", 2, PLAN, CHANGE)
        return write(*arguments, **named)

    monkeypatch.setattr(registries.routes, "write", declared_before)
    before = splits(registries)
    with pytest.raises(Refused, match="bot@2 is being rolled out"):
        conduct.start(registries, draft, CHANGE)
    assert splits(registries)[:1] == before
    assert {2: 5_000, 1: 5_000} not in splits(registries), "the split is the rollout's"


@pytest.mark.parametrize("registries", ["postgresql"], indirect=True)
@pytest.mark.parametrize("first", ["rollout", "experiment"])
def test_whoever_comes_second_waits_for_what_the_first_is_writing(
    registries: Registry, draft: str, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """An SQLite file has one writer at a time; a PostgreSQL has many, each of which sees only what was committed."""
    set_route(registries, "bot", {2: 5_000, 1: 5_000}, CHANGE)
    store, name = (Rollouts, "_note") if first == "rollout" else (Experiments, "_on_record")
    record, writing, others = getattr(store, name), threading.Event(), list[int]()

    def slowly(*arguments: Any, **named: Any) -> None:
        """It has looked and written, and commits only once somebody waits."""
        writing.set()
        deadline = time.monotonic() + 20
        with registries.database.reading() as connection:
            while not (waiting := connection.execute(sa.text(WAITING)).scalar_one()) and time.monotonic() < deadline:
                time.sleep(0.01)
        others.append(waiting)
        record(*arguments, **named)

    monkeypatch.setattr(store, name, slowly)
    begin = {
        "rollout": lambda: outcome(declare, registries, "bot", 2, PLAN, CHANGE),
        "experiment": lambda: outcome(conduct.start, registries, draft, CHANGE),
    }
    [second] = begin.keys() - {first}
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(begin[first])
        assert writing.wait(60)
        other = pool.submit(begin[second])
        assert (one.result(timeout=60), others) == ("runs", [1])
        assert "would change its split" in other.result(timeout=60)


def test_a_paused_rollout_lets_an_experiment_run_and_is_not_resumed_beside_it(registries: Registry, draft: str) -> None:
    rollout = declare(registries, "bot", 2, PLAN, CHANGE)
    with registries.database.writing() as connection:
        paused = registries.rollouts.end(connection, rollout, RolloutState.PAUSED, "test")
    conduct.start(registries, draft, CHANGE)
    with pytest.raises(Refused, match="is running, and a rollout would change its split"):
        resume(registries, "bot", CHANGE)
    with pytest.raises(Refused, match="is running, and a rollout would change its split"):
        registries.rollouts.resume(paused, paused, by="ada", reason="at the same moment")
    assert running(registries) == [False, True]
