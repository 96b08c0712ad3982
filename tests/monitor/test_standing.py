"""What stands still is told: paused rollouts, rollouts and bandits without a controller, retrainings that wait."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from prometheus_client import generate_latest

from monitor.scene import Scene
from tests_support import retraining_request
from tuneloop.registry.experiments.declaration import Declaration, ExperimentPlan
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.budgets import Estimate
from tuneloop.registry.rollouts.controller import LEASE_S
from tuneloop.registry.rollouts.rollout import Rollout, RolloutPlan, RolloutState
from tuneloop.registry.rollouts.steering import abort, declare
from tuneloop.registry.routes.promotion import Change

DAY_S = 86_400.0
Told = Callable[[], dict[str, float]]


@pytest.fixture
def told(scene: Scene) -> Told:
    """One pass of a monitor that goes on from pass to pass, and what it exports of this."""
    monitor = scene.monitor()

    def passed() -> dict[str, float]:
        scene.watch(monitor)
        lines = generate_latest(monitor._metrics.collectors).decode().splitlines()
        ours = (line.removeprefix("tuneloop_").rsplit(" ", 1) for line in lines)
        of = ("rollout", "bandit", "retraining_waiting")
        return {name: float(value) for name, value in ours if name.startswith(of)}

    return passed


@pytest.fixture
def declared(scene: Scene) -> Rollout:
    """A rollout of `bot@2` as `--detach` leaves it."""
    for number in (1, 2):
        scene.registry.gates.approve("bot", number, by="ada", reason="test")
    scene.promote(2)
    scene.promote(1)
    return declare(scene.registry, "bot", 2, RolloutPlan(), Change("ada", "test"))


def test_a_rollout_without_a_controller_is_told_from_its_declaration_on(
    scene: Scene, declared: Rollout, told: Told
) -> None:
    rollouts = scene.registry.rollouts
    scene.clock.advance(40)
    first = told()
    assert first == {
        'rollouts_open{model="bot",state="running"}': 1.0,
        'rollout_undriven_seconds{model="bot"}': pytest.approx(40, abs=1),
    }
    held = rollouts.claim(declared.id, "controller-1", LEASE_S)
    assert held is not None
    assert told()['rollout_undriven_seconds{model="bot"}'] == 0.0
    scene.clock.advance(LEASE_S + 90)  # it was killed, and renews no more
    assert told()['rollout_undriven_seconds{model="bot"}'] == pytest.approx(90, abs=1)
    held = rollouts.claim(declared.id, "controller-2", LEASE_S)
    assert held is not None
    assert told()['rollout_undriven_seconds{model="bot"}'] == 0.0
    rollouts.release(held)  # an orderly end, and nobody follows
    scene.clock.advance(30)
    assert told()['rollout_undriven_seconds{model="bot"}'] == pytest.approx(30, abs=1)


def test_a_paused_rollout_is_told_until_it_is_ended(scene: Scene, declared: Rollout, told: Told) -> None:
    rollouts = scene.registry.rollouts
    held = rollouts.claim(declared.id, "controller-1", LEASE_S)
    assert held is not None
    with scene.registry.database.writing() as connection:
        rollouts.end(connection, held, RolloutState.PAUSED, "nothing decided")
    scene.clock.advance(600)
    assert told() == {'rollouts_open{model="bot",state="paused"}': 1.0}
    abort(scene.registry, "bot", Change("ada", "enough"))
    assert told() == {}


def test_a_request_that_a_person_or_a_budget_holds_is_told_with_its_age(scene: Scene, told: Told) -> None:
    queue, registry = scene.registry.retraining, scene.registry
    scene.clock.now = scene.clock.now.replace(hour=1)
    limits = RetrainingPolicy(runs_per_day=1, device_hours_per_day=8)
    registry.policies.set("bot", limits, by="ada", reason="test")
    hour = Estimate(hours=1.0, devices=1, usd_per_hour=None, basis="test")

    def filed(name: str, ago_s: float) -> None:
        at = scene.clock.now - timedelta(seconds=ago_s)
        queue.file(retraining_request(at, id=name, idempotency_key=name), by="monitor")

    for name, ago_s in (("rt_1", 7_200.0), ("rt_2", 3_600.0)):
        filed(name, ago_s)
    assert told() == {
        'retraining_waiting{model="bot",waits_for="person"}': 2.0,
        'retraining_waiting_seconds{model="bot",waits_for="person"}': pytest.approx(7_200, abs=1),
    }
    for name in ("rt_1", "rt_2"):
        queue.approve(name, by="ada", reason="test")
    assert told() == {}, "what is queued waits for a worker, which is another matter"

    first = queue.claim("w", lease_s=60)
    assert first is not None
    queue.begin(first, hour, by="w")
    second = queue.claim("w", lease_s=60)
    assert second is not None
    assert queue.begin(second, hour, by="w").held_until is not None
    assert told() == {
        'retraining_waiting{model="bot",waits_for="budget"}': 1.0,
        'retraining_waiting_seconds{model="bot",waits_for="budget"}': pytest.approx(3_600, abs=1),
    }
    scene.clock.advance(DAY_S)
    assert told() == {}, "the day is over: a worker takes it"

    again = queue.claim("w", lease_s=60)
    assert again is not None
    too_long = Estimate(hours=9.0, devices=1, usd_per_hour=None, basis="test")
    assert queue.begin(again, too_long, by="w").state == "proposed"
    assert told()['retraining_waiting{model="bot",waits_for="person"}'] == 1.0


def test_a_bandits_step_that_nobody_sees_to_is_told(scene: Scene, told: Told) -> None:
    experiments = scene.registry.experiments
    fields = {"model": "bot", "hypothesis": "2 is better", "arms": {2: 5_000, 1: 5_000}, "mode": "bandit"}
    primary = {"kind": "binary", "measure": "thumbs_down", "goal": "lower", "minimum_effect": 0.02}
    declared = Declaration.model_validate(fields | {"primary": primary, "floor_bp": 1_000, "step_every_s": DAY_S})
    made = experiments.new(declared, ExperimentPlan(days_seen=1.0, units_seen=1), by="ada", reason="test")
    experiments.start(made.id, revision=scene.registry.routes.current("bot").revision, by="ada", reason="test")
    assert told() == {'bandit_step_due_seconds{model="bot"}': 0.0}
    scene.clock.advance(DAY_S + 900)
    assert told() == {'bandit_step_due_seconds{model="bot"}': pytest.approx(900, abs=2)}
    experiments.looked(made.id, scene.clock())
    assert told() == {'bandit_step_due_seconds{model="bot"}': 0.0}
    experiments.stop(made.id, by="ada", reason="test")
    assert told() == {}
