"""A rollout on a clock that the test moves: its plan, where it stands, and a minute that goes by."""

from __future__ import annotations

from registry.world import KEYS, Users
from tests_support import Clock
from tuneloop.registry import Registry
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.rollout import Rollout, RolloutPlan, RolloutStep
from tuneloop.registry.routes.promotion import Change

PLAN = RolloutPlan(
    steps=(
        RolloutStep(weight_bp=1_000, hold_s=60, min_samples=5),
        RolloutStep(weight_bp=5_000, hold_s=60, min_samples=5),
    ),
    limits=Limits(feedback_margin=0.2, error_margin=0.1),
    give_up_s=600,
)
GRACE = Change("grace", "knows better")


def now(registry: Registry) -> Rollout:
    return registry.rollouts.all("bot")[0]


def pass_time(registry: Registry, users: Users, clock: Clock, controller: Controller, looks: int = 1) -> None:
    """A minute goes by in which everybody asks thrice, and the controller looks."""
    for _ in range(looks):
        clock.advance(61)
        users.ask(registry.routes.current("bot"), KEYS * 3)
        controller.turn()
