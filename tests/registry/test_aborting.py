"""Aborting a rollout takes the share that it gave, and no other: those of a person and of an experiment stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.rolling import GRACE, PLAN, now
from registry.world import CHANGE, Users
from tests_support import publish_version, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.errors import Refused
from tuneloop.registry.experiments.conduct import start
from tuneloop.registry.experiments.declaration import Declaration, ExperimentPlan, Primary
from tuneloop.registry.nouns import RetrainingState
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.rollouts.steering import abort, declare
from tuneloop.registry.routes.promotion import set_route


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.fixture
def three(registries: Registry, tmp_path: Path) -> None:
    """`bot@3`, which may get a share."""
    publish_version(registries, tmp_path / "v3")
    registries.gates.approve("bot", 3, by="ada", reason="test")


def paused_by(registry: Registry, split: dict[int, int]) -> None:
    """A rollout of 2 at its first step that pauses since somebody writes this split."""
    declare(registry, "bot", 2, PLAN, CHANGE)
    controller = Controller(registry)
    controller.turn()
    set_route(registry, "bot", split, GRACE)
    controller.turn()
    assert now(registry).state is RolloutState.PAUSED


def test_a_share_that_a_person_gave_another_version_stays_and_its_request_too(
    registries: Registry, users: Users, three: None
) -> None:
    gated = retraining_request(
        registries.clock(), id="rt_3", idempotency_key="3", state=RetrainingState.GATED, result_version=3
    )
    registries.retraining.file(gated, by="monitor")
    paused_by(registries, {3: 300, 1: 9_700})
    with pytest.raises(Refused, match=r"bot@3 has a share .* with `tuneloop rollback bot`"):
        declare(registries, "bot", 2, PLAN, CHANGE)
    before = registries.routes.current("bot")
    assert abort(registries, "bot", GRACE)[1] == before == registries.routes.current("bot")
    assert now(registries).state is RolloutState.ABORTED
    assert registries.retraining.get("rt_3").state is RetrainingState.GATED


def test_of_two_shares_its_own_goes_to_the_champion_whoever_may_have_the_other(
    registries: Registry, users: Users, three: None
) -> None:
    paused_by(registries, {2: 1_000, 3: 300, 1: 8_700})
    registries.gates.revoke("bot", 3, by="ada", reason="what serves goes on")
    assert abort(registries, "bot", GRACE)[1].split == {2: 0, 3: 300, 1: 9_700}
    assert registries.retraining.get("rt_1").state is RetrainingState.REJECTED


def test_what_a_rollout_gave_is_taken_away_by_ending_it(registries: Registry, users: Users) -> None:
    paused_by(registries, {2: 300, 1: 9_700})
    with pytest.raises(Refused, match=r"bot@2 has a share .* with `tuneloop rollout abort bot`"):
        declare(registries, "bot", 3, PLAN, CHANGE)
    assert abort(registries, "bot", GRACE)[1].split == {2: 0, 1: 10_000}


def test_an_experiment_beside_a_paused_rollout_keeps_its_split(registries: Registry, users: Users) -> None:
    paused_by(registries, {2: 0, 1: 10_000})
    primary = Primary(kind="binary", measure="error", goal="lower", minimum_effect=0.1)
    declared = Declaration(model="bot", hypothesis="h", arms={1: 5_000, 2: 5_000}, control=1, primary=primary)
    made = registries.experiments.new(declared, ExperimentPlan(days_seen=0.0, units_seen=0), by="ada", reason="r")
    _, given = start(registries, made.id, CHANGE)
    assert abort(registries, "bot", GRACE)[1] == given
    assert registries.routes.current("bot").split == {2: 5_000, 1: 5_000}
