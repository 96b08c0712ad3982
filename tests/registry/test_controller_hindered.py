"""What hinders a controller's look at a rollout, on both databases: it is said there, and in the end pauses it.

A database that is away hinders nothing for good, and somebody who was first hinders nothing at all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from registry.rolling import GRACE, PLAN, now, pass_time
from registry.world import CHANGE, Users, splits
from tests_support import Clock
from tuneloop.registry import Registry, overview
from tuneloop.registry.errors import DatabaseAway
from tuneloop.registry.guard_policy import GuardPolicy
from tuneloop.registry.nouns import Arm
from tuneloop.registry.rollouts import advancing
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.rollouts.steering import declare, resume
from tuneloop.registry.tables import policies, routes

S = RolloutState
DAMAGED = "the guard policy of bot cannot be read: enabled: Input should be a valid boolean"


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.fixture
def controller(registries: Registry, users: Users) -> Controller:
    """It has given `bot@2` the first share."""
    declare(registries, "bot", 2, PLAN, CHANGE)
    looking = Controller(registries)
    looking.turn()
    assert now(registries).step == 0
    return looking


def damage_policy(registry: Registry) -> None:
    row = {"model": "bot", "kind": "guard", "body": {"enabled": "perhaps"}, "by": "eve", "reason": "by hand"}
    with registry.database.writing() as connection:
        connection.execute(sa.insert(policies).values(**row, at=registry.clock()))


def damage_revision(registry: Registry, revision: int) -> None:
    with registry.database.writing() as connection:
        connection.execute(sa.update(routes).where(routes.c.revision == revision).values(arms=[]))


def test_a_damaged_policy_is_said_on_the_rollout_once_and_mended_it_goes_on(
    registries: Registry, users: Users, clock: Clock, controller: Controller, caplog: pytest.LogCaptureFixture
) -> None:
    damage_policy(registries)
    for _ in range(3):
        clock.advance(61)
        controller.turn()
    held = now(registries)
    assert (held.state, held.step) == (S.RUNNING, 0)
    assert [(check.name, check.verdict) for check in held.checks] == [("judgement", "inconclusive")]
    assert held.checks[0].detail.startswith(DAMAGED)
    assert [record.message.startswith(f"{held.id}: {DAMAGED}") for record in caplog.records] == [True]
    told = overview.rollout_now(registries, "bot")
    assert told.rollout == held
    assert told.report is not None
    assert [check.detail.startswith(DAMAGED) for check in told.report.checks] == [True]
    registries.policies.set("bot", GuardPolicy(), by="ada", reason="mended")
    pass_time(registries, users, clock, controller)
    assert (now(registries).state, now(registries).step) == (S.RUNNING, 1)


def test_what_a_damaged_policy_keeps_from_being_judged_is_paused_once_it_has_waited_long_enough(
    registries: Registry, users: Users, clock: Clock, controller: Controller
) -> None:
    damage_policy(registries)
    clock.advance(PLAN.give_up_s + 61)
    controller.turn()
    paused = now(registries)
    assert paused.state is S.PAUSED
    assert paused.outcome.startswith(f"nothing decided after 661 s: {DAMAGED}")
    assert splits(registries)[-1] == {2: 1_000, 1: 9_000}, "the share stays for a person to decide about"
    [verdict] = registries.audit.entries("bot@2", action="rollout.verdict")
    assert (verdict.detail["outcome"], verdict.detail["verdict"]) == ("paused", "inconclusive")
    registries.policies.set("bot", GuardPolicy(), by="ada", reason="mended")
    resume(registries, "bot", GRACE)
    pass_time(registries, users, clock, controller)
    assert (now(registries).state, now(registries).step) == (S.RUNNING, 1)


@pytest.mark.parametrize("newest", [False, True])
def test_a_damaged_revision_of_the_trial_pauses_a_rollout_too(
    registries: Registry, users: Users, clock: Clock, controller: Controller, newest: bool
) -> None:
    arms = [Arm(version=2, weight_bp=1_000), Arm(version=1, weight_bp=9_000)]
    written = registries.routes.write("bot", arms, by="grace", reason="the same again", expected_revision=2)
    controller.turn()
    damage_revision(registries, written.revision if newest else 2)
    clock.advance(PLAN.give_up_s)
    controller.turn()
    assert (now(registries).state, now(registries).step) == (S.RUNNING, 0)
    clock.advance(1)
    controller.turn()
    assert now(registries).state is S.PAUSED
    assert "the database's Route bot" in now(registries).outcome


def test_a_database_that_is_away_pauses_nothing_however_long(
    registries: Registry, users: Users, clock: Clock, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise DatabaseAway("database test: no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(advancing, "judged", away)
        clock.advance(PLAN.give_up_s + 1)
        controller.turn()
    assert now(registries).state is S.RUNNING
    assert not any("no route to host" in check.detail for check in now(registries).checks)
    pass_time(registries, users, clock, controller)
    assert (now(registries).state, now(registries).step) == (S.RUNNING, 1)


def test_an_error_nobody_foresaw_is_said_without_its_words_and_still_raised_for_the_log(
    registries: Registry, clock: Clock, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret of the code")

    monkeypatch.setattr(advancing, "judged", fail)
    for state in (S.RUNNING, S.PAUSED):
        with pytest.raises(ZeroDivisionError):
            controller.look(now(registries).id)
        assert now(registries).state is state
        assert now(registries).checks[0].detail.startswith("an error that nobody foresaw (ZeroDivisionError)")
        clock.advance(PLAN.give_up_s + 1)
