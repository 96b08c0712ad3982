"""Bandits that step by themselves, on both databases and on a clock the test moves: on their cadence, once, and never
against a person."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from registry.experiment_traffic import CHANGE, DECLARED, NO_PLAN, Users, declared
from registry.world import set_up, splits
from tests_support import Clock, beat_engine
from tuneloop.registry import Registry
from tuneloop.registry.aliases.watch import AliasWatch
from tuneloop.registry.errors import Conflict, InvalidInput, Refused
from tuneloop.registry.experiments import cadence, conduct
from tuneloop.registry.experiments.declaration import Experiment
from tuneloop.registry.experiments.stepping import Stepping
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.routes.promotion import Change, set_route

DAY_S = 86_400
BANDIT = f"{DECLARED}mode: bandit\nfloor_bp: 1500\nstep_every_s: {DAY_S}\n"
GRACE = Change("grace", "knows better")
SLOWER = conduct.BanditStep({}, {1: 4_000, 2: 6_000})


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.fixture
def bandit(registries: Registry, tmp_path: Path) -> Experiment:
    """A bandit that steps daily; version 2 is better."""
    set_up(registries)
    beat_engine(registries, "bot@1", "bot@2")
    settled = conduct.settled(registries, declared(tmp_path, BANDIT))
    made = registries.experiments.new(settled, NO_PLAN, by="ada", reason="test")
    return conduct.start(registries, made.id, CHANGE)[0]


@pytest.fixture
def users(registries: Registry, bandit: Experiment, clock: Clock) -> Users:
    asking = Users(registries, clock, {1: 0.5, 2: 0.2})
    asking.ask(range(400), each=1)
    return asking


def a_day_later(registry: Registry, clock: Clock) -> None:
    clock.advance(DAY_S)
    beat_engine(registry, "bot@1", "bot@2")


def test_a_bandit_steps_on_its_cadence_with_nobody_asking(
    registries: Registry, bandit: Experiment, users: Users, clock: Clock
) -> None:
    first, second = Controller(registries), Controller(registries)
    first.turn()
    assert len(splits(registries)) == 2, "its first span is not over"
    a_day_later(registries, clock)
    for controller in (first, second, first):
        controller.turn()
    assert splits(registries)[2:] == [{1: 1_500, 2: 8_500}], "the better arm has all but the floor, once"
    [entry] = registries.audit.entries("bot", action="experiment.step")
    assert (entry.actor, entry.detail["experiment"], entry.detail["controller"]) == ("ada", bandit.id, first.owner)
    assert entry.detail["reason"] == "a step every 86400 s was declared"
    assert registries.audit.verify().faults == ()
    users.down = {1: 0.2, 2: 0.7}  # it was not, after all
    users.ask(range(400, 1_400), each=1)
    clock.advance(3 * DAY_S)
    beat_engine(registries, "bot@1", "bot@2")
    Controller(registries).turn()  # a restarted one
    assert len(splits(registries)) == 4, "what was missed is not made up for"
    assert splits(registries)[3][1] > 1_500
    registries.experiments.stop(bandit.id, by="ada", reason="over")
    a_day_later(registries, clock)
    first.turn()
    assert len(splits(registries)) == 4


def test_of_two_controllers_that_saw_the_same_one_writes(
    registries: Registry, bandit: Experiment, users: Users, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_day_later(registries, clock)
    first, second = Stepping(registries, "first"), Stepping(registries, "second")
    move = conduct.move

    def beaten(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(conduct, "move", move)
        first.look(bandit.id)
        return move(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(conduct, "move", beaten)
    with pytest.raises(Conflict, match="you saw revision 2"):
        second.look(bandit.id)
    second.look(bandit.id)
    [entry] = registries.audit.entries("bot", action="experiment.step")
    assert entry.detail["controller"] == "first"
    assert len(splits(registries)) == 3


def test_a_step_that_is_due_is_told_until_somebody_sees_to_it(
    registries: Registry, bandit: Experiment, users: Users, clock: Clock
) -> None:
    def due_s() -> float | None:
        return cadence.due_s(registries.experiments.get(bandit.id), clock())

    def since_day(number: int) -> object:
        assert bandit.started_at is not None
        return pytest.approx((clock() - bandit.started_at).total_seconds() - number * DAY_S)

    controller = Controller(registries)
    assert due_s() == 0.0
    a_day_later(registries, clock)
    assert due_s() == since_day(1)
    controller.turn()
    assert due_s() == 0.0
    set_route(registries, "bot", {2: 0, 1: 10_000}, GRACE)  # nothing is left to move: it is seen to all the same
    a_day_later(registries, clock)
    assert due_s() == since_day(2)
    controller.turn()
    assert due_s() == 0.0
    clock.advance(2 * DAY_S)
    assert due_s() == since_day(3), "since the first that was missed"


def test_a_clock_that_goes_back_an_hour_steps_no_span_twice_and_one_that_was_a_year_ahead_stops_none(
    registries: Registry, bandit: Experiment, users: Users, clock: Clock
) -> None:
    a_day_later(registries, clock)
    Controller(registries).turn()
    assert len(splits(registries)) == 3
    users.down = {1: 0.2, 2: 0.7}
    users.ask(range(400, 1_400), each=1)
    clock.advance(-3_600)
    Controller(registries).turn()
    clock.advance(3_600 + DAY_S // 2)
    Controller(registries).turn()
    assert len(splits(registries)) == 3
    clock.advance(365 * DAY_S)
    beat_engine(registries, "bot@1", "bot@2")
    Controller(registries).turn()
    assert len(splits(registries)) == 4
    users.down = {1: 0.7, 2: 0.2}
    clock.advance(-365 * DAY_S)
    users.ask(range(1_400, 4_400), each=1)
    a_day_later(registries, clock)
    Controller(registries).turn()
    assert len(splits(registries)) == 5
    assert cadence.due_s(registries.experiments.get(bandit.id), clock()) == 0.0


def test_a_controller_killed_right_after_a_step_leaves_one_that_is_seen_to_and_that_the_next_does_not_repeat(
    registries: Registry, bandit: Experiment, users: Users, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit("kill -9")

    a_day_later(registries, clock)
    with monkeypatch.context() as patch:
        patch.setattr(registries.experiments, "looked", killed)
        with pytest.raises(SystemExit):
            Stepping(registries, "first").look(bandit.id)
    assert (len(splits(registries)), registries.experiments.get(bandit.id).looked_at) == (3, clock())
    users.down = {1: 0.2, 2: 0.7}  # a second step would move much
    users.ask(range(400, 1_400), each=1)
    Stepping(registries, "second").look(bandit.id)
    assert len(splits(registries)) == 3


def test_a_step_by_hand_is_the_spans_step_and_is_due_no_more(
    registries: Registry, bandit: Experiment, users: Users, clock: Clock
) -> None:
    def due_s() -> float | None:
        return cadence.due_s(registries.experiments.get(bandit.id), clock())

    clock.advance(600)
    a_day_later(registries, clock)
    running, route, wanted = conduct.step(registries, bandit.id)
    assert wanted.split != SLOWER.split
    assert due_s() != 0.0
    route = conduct.take(registries, running, route, SLOWER, GRACE)
    assert due_s() == 0.0, "nobody is told of it any more"
    Controller(registries).turn()
    assert [entry.actor for entry in registries.audit.entries("bot", action="experiment.step")] == ["grace"]
    assert splits(registries)[2:] == [SLOWER.split]
    a_day_later(registries, clock)
    assert due_s() != 0.0
    conduct.take(registries, running, route, SLOWER, GRACE)
    assert (due_s(), len(splits(registries))) == (0.0, 3), "it has nothing to move, and is seen to"
    a_day_later(registries, clock)
    Controller(registries).turn()
    assert splits(registries)[-1] == {1: 1_500, 2: 8_500}


def test_a_bandit_that_is_stopped_while_a_step_is_computed_moves_nobody(
    registries: Registry, bandit: Experiment, users: Users, clock: Clock
) -> None:
    a_day_later(registries, clock)
    running, route, wanted = conduct.step(registries, bandit.id)
    registries.experiments.stop(bandit.id, by="grace", reason="enough")
    entries = len(registries.audit.entries())
    with pytest.raises(Refused, match="was stopped meanwhile: the shares stay as they are"):
        conduct.move(registries, running, route, wanted, CHANGE)
    assert (len(splits(registries)), len(registries.audit.entries())) == (2, entries)


@pytest.mark.parametrize("registries", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_a_bandit_is_not_stopped_between_a_steps_check_and_its_commit(registries: Registry, bandit: Experiment) -> None:
    stop = partial(registries.experiments.stop, bandit.id, by="grace", reason="enough")
    stopping = threading.Thread(target=stop)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    def waits() -> bool:
        with registries.database.reading() as connection:
            return bool(connection.execute(sa.text(waiting)).scalar())

    with registries.database.writing() as connection:
        registries.experiments.expect_running(connection, bandit.id)
        stopping.start()
        while stopping.is_alive() and not waits():
            time.sleep(0.01)
        assert registries.experiments.get(bandit.id).state == "running"
    stopping.join()
    assert registries.experiments.get(bandit.id).state == "stopped"


def test_an_error_nobody_foresaw_in_a_bandit_stops_no_other_and_nothing_after_them(
    registries: Registry,
    bandit: Experiment,
    users: Users,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    look, turned = Stepping.look, list[str]()

    def broken(stepping: Stepping, experiment_id: str) -> None:
        if experiment_id == "exp_broken":
            raise ValueError("no such span")
        look(stepping, experiment_id)

    monkeypatch.setattr(Stepping, "stepping", lambda _: ["exp_broken", bandit.id])
    monkeypatch.setattr(Stepping, "look", broken)
    monkeypatch.setattr(AliasWatch, "turn", lambda _: turned.append("turned"))
    a_day_later(registries, clock)
    controller = Controller(registries)
    for _ in range(2):
        controller.turn()
    assert splits(registries)[2:] == [{1: 1_500, 2: 8_500}]
    assert len(turned) == 2
    said = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in said if record.exc_info] == ["no such span"]
    assert "exp_broken: an error nobody foresaw" in said[0].message


def test_what_a_person_took_away_is_not_given_back(
    registries: Registry, bandit: Experiment, users: Users, clock: Clock
) -> None:
    set_route(registries, "bot", {2: 0, 1: 10_000}, GRACE)
    a_day_later(registries, clock)
    Controller(registries).turn()
    assert splits(registries)[-1] == {2: 0, 1: 10_000}


def test_hidden_results_move_nothing_and_are_said_once_a_span(
    registries: Registry, bandit: Experiment, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    users = Users(registries, clock, {1: 0.5, 2: 0.2}, lost=lambda record: record.assigned_version == 2)
    users.ask(range(400), each=1)
    a_day_later(registries, clock)
    controller = Controller(registries)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            controller.turn()
    assert sum("units did not come to the arms as declared" in record.message for record in caplog.records) == 1
    assert len(splits(registries)) == 2


def test_a_cadence_is_a_bandits_and_moves_no_digest_of_those_without(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="step_every_s: only a bandit moves its shares"):
        declared(tmp_path, f"{DECLARED}step_every_s: 86400\n")
    plain = declared(tmp_path)
    assert "step_every_s" in plain.model_dump()
    # As it was before the key was there; an experiment that started then is still the one it started as.
    assert plain.digest == "b27f0275f76bd76d3176b8251751e3da81f0a080701f356a6b3348a1539244fa"
    assert declared(tmp_path, BANDIT).digest != declared(tmp_path, BANDIT.replace(str(DAY_S), "3600")).digest
