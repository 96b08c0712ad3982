"""What is kept of nouns, on both databases: an older process can read it as long as nobody uses what is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import create_model

from registry.experiment_traffic import DECLARED, NO_PLAN, declared
from tuneloop.registry import Registry
from tuneloop.registry.guard_policy import GuardPolicy, OutputGuards, Topics
from tuneloop.registry.nouns import Arm, Noun, kept
from tuneloop.registry.policies import GatePolicy, RolloutPolicy, Threshold
from tuneloop.registry.rollouts.rollout import RolloutPlan, RolloutStep
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.tables import experiments, policies, rollouts

STEP = RolloutStep(weight_bp=1_000, checks={"errors": 0.5, "latency": None})


def body_of(registry: Registry, column: sa.Column[Any]) -> Any:
    """What stands in the newest row."""
    with registry.database.reading() as connection:
        return connection.execute(sa.select(column).order_by(column.table.c[0].desc()).limit(1)).scalar()


def older(kind: type[Noun], newest: str) -> type[Noun]:
    """The noun as it was before it got its newest key."""
    fields = {name: (field.annotation, field.default) for name, field in kind.model_fields.items() if name != newest}
    return create_model(f"Older{kind.__name__}", __base__=Noun, **fields)  # type: ignore[call-overload, no-any-return]


def test_a_policy_that_uses_nothing_new_is_read_by_gateways_that_do_not_know_it(registries: Registry) -> None:
    plain = GuardPolicy(flag_from=0.25)
    registries.policies.set("bot", plain, by="ada", reason="r")
    before = older(GuardPolicy, "topics").model_validate(body_of(registries, policies.c.body))
    assert (before.model_dump()["flag_from"], before.model_dump()["max_choices"]) == (0.25, None)
    assert registries.policies.get("bot", GuardPolicy) == plain
    told = plain.model_copy(update={"topics": Topics(allow={"pets": ("cats", "dogs")})})
    registries.policies.set("bot", told, by="ada", reason="r")
    assert registries.policies.get("bot", GuardPolicy) == told
    assert registries.audit.verify().faults == ()


def test_a_plan_that_uses_nothing_new_is_read_by_controllers_that_do_not_know_it(registries: Registry) -> None:
    arms = [Arm(version=2, weight_bp=1_000), Arm(version=1, weight_bp=9_000)]
    registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
    registries.gates.approve("bot", 2, by="ada", reason="r")
    declare(registries, "bot", 2, RolloutPlan(), Change("ada", "r"))
    steps = body_of(registries, rollouts.c.plan)["steps"]
    assert [older(RolloutStep, "checks").model_validate(step).model_dump()["hold_s"] for step in steps] == [60.0] * 2
    [open_one] = registries.rollouts.all("bot")
    assert open_one.plan == RolloutPlan()


def test_a_declaration_that_uses_nothing_new_is_kept_without_it(registries: Registry, tmp_path: Path) -> None:
    plain = declared(tmp_path)
    made = registries.experiments.new(plain, NO_PLAN, by="ada", reason="r")
    assert "step_every_s" not in body_of(registries, experiments.c.declaration)
    assert registries.experiments.get(made.id) == made
    stepping = declared(tmp_path, f"{DECLARED}mode: bandit\nstep_every_s: 60\n")
    changed = registries.experiments.redeclare(made.id, stepping, NO_PLAN, by="ada", reason="r")
    assert body_of(registries, experiments.c.declaration)["step_every_s"] == 60.0
    assert registries.experiments.get(made.id) == changed


@pytest.mark.parametrize(
    "noun",
    [
        RolloutPlan(steps=(STEP, RolloutStep(weight_bp=5_000))),
        RolloutPolicy(steps=(STEP,), aliases="adopt"),
        GatePolicy(metrics={"perplexity.qa": Threshold(max=3.0)}, person=True),
        GuardPolicy(output=OutputGuards(), keys={}),
    ],
)
def test_what_is_kept_says_what_was_said(noun: Noun) -> None:
    assert type(noun).model_validate(kept(noun)) == noun
    assert kept(STEP)["checks"] == {"errors": 0.5, "latency": None}, "a limit that is the plan's was said"
