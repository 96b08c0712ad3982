"""However long a route's history is, and whatever is damaged far back in it: going back reads what it needs of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from registry.experiment_traffic import NO_PLAN
from registry.world import CHANGE
from tests_support import Clock, request_record
from tuneloop.registry import Registry
from tuneloop.registry.database import row_of
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.experiments.declaration import Declaration, Primary
from tuneloop.registry.experiments.gather import gather
from tuneloop.registry.nouns import Arm, AuditEntry, Route
from tuneloop.registry.routes.promotion import promote
from tuneloop.registry.routes.rolling_back import champions_before, rollback
from tuneloop.registry.tables import routes

MANY = 400
METRIC = Primary(kind="binary", measure="error", goal="lower", minimum_effect=0.1)
HALVES = (Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000))


def revision(number: int, champion: int, clock: Clock) -> Route:
    arms = (Arm(version=champion, weight_bp=10_000),)
    return Route(model="bot", revision=number, arms=arms, salt="s", by="ada", reason="r", at=clock())


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.fixture
def old(registries: Registry, clock: Clock) -> Registry:
    """Versions 1 and 2 served in turn over many revisions, the last time version 1."""
    made = [revision(number, 1 + number % 2, clock) for number in range(1, MANY + 1)]
    for number in (1, 2):
        registries.gates.approve("bot", number, by="ada", reason="test")
    with registries.database.writing() as connection:
        connection.execute(sa.insert(routes), [row_of(route, routes) for route in made])
    clock.advance(1)
    return registries


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """What was made of the database's rows, one after the other."""
    made: list[type] = []

    def counting(kind: type[Route] | type[AuditEntry]) -> Callable[[Any], Any]:
        validate = kind.model_validate

        def counted(row: Any) -> Any:
            made.append(kind)
            return validate(row)

        return counted

    for kind in (Route, AuditEntry):
        monkeypatch.setattr(kind, "model_validate", counting(kind))
    return made


def damage(registry: Registry, *numbers: int) -> None:
    with registry.database.writing() as connection:
        connection.execute(sa.update(routes).where(routes.c.revision.in_(numbers)).values(arms=[]))


def test_a_rollback_reads_a_handful_of_revisions_whatever_is_damaged_before_them(
    old: Registry, validated: list[type]
) -> None:
    damage(old, *range(1, MANY - 4))
    assert rollback(old, "bot", CHANGE).champion == 2
    assert 0 < len(validated) < 20
    validated.clear()
    promote(old, "bot", 1, CHANGE)
    assert rollback(old, "bot", CHANGE).champion == 2
    assert 0 < len(validated) < 20
    assert [rollback(old, "bot", CHANGE).champion for _ in range(3)] == [1, 2, 1]
    with pytest.raises(Unreadable, match="say where to go back to: `tuneloop rollback bot --to REVISION`"):
        rollback(old, "bot", CHANGE)


def test_an_experiment_reads_the_revisions_since_its_start_whatever_is_damaged_before(
    old: Registry, clock: Clock, validated: list[type]
) -> None:
    declared = Declaration(model="bot", hypothesis="h", arms={1: 5_000, 2: 5_000}, control=1, primary=METRIC)
    made = old.experiments.new(declared, NO_PLAN, by="ada", reason="r")
    route = old.routes.write("bot", HALVES, by="ada", reason="r", expected_revision=MANY)
    started = old.experiments.start(made.id, revision=route.revision, by="ada", reason="r")
    damage(old, *range(1, MANY + 1))
    clock.advance(1)
    arms = {"assigned_version": 1, "served_version": 1, "key_hash": "k"}
    old.traffic.add_requests([request_record(1, clock(), revision=route.revision, **arms)])
    validated.clear()
    evidence = gather(old, started, clock() + timedelta(seconds=1))
    assert (evidence.requests, [stratum.revisions for stratum in evidence.strata]) == ((1, 0), [(route.revision,)])
    assert validated == [Route]
    damage(old, route.revision)
    with pytest.raises(Unreadable, match=f"the database's Route bot {route.revision}"):
        gather(old, started, clock())


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12), st.integers(1, 12))
def test_what_the_newest_revisions_tell_of_who_served_before_is_what_all_of_them_tell(
    history: list[tuple[int, bool]], some: int
) -> None:
    made = [revision(number, champion, Clock()) for number, (champion, _) in enumerate(history, start=1)][::-1]
    rollbacks = {number for number, (_, is_rollback) in enumerate(history, start=1) if is_rollback}
    every = champions_before(made, rollbacks, whole=True)
    told = champions_before(made[:some], rollbacks, whole=some >= len(made))
    assert every[len(every) - len(told) :] == told
