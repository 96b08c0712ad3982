"""What a rollout does next, in values: no step left out, no failure overlooked, nothing shipped on no data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tuneloop.registry.nouns import Arm, Check, GateReport, Route, Verdict
from tuneloop.registry.rollouts.canary import CheckName, Limits
from tuneloop.registry.rollouts.judging import named_alone
from tuneloop.registry.rollouts.rollout import (
    Action,
    Hold,
    Pause,
    Position,
    Raise,
    RolloutPlan,
    RolloutStep,
    Ship,
    TakeBack,
    decide,
    who_gets_what,
)

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
PLAN = RolloutPlan(
    steps=(RolloutStep(weight_bp=1_000, hold_s=10), RolloutStep(weight_bp=5_000, hold_s=20)), give_up_s=100
)
NAMES = ("samples", "errors", "latency", "feedback")
VERDICTS: tuple[Verdict, ...] = ("pass", "fail", "inconclusive")

weights = st.lists(st.integers(1, 9_999), min_size=1, max_size=5, unique=True).map(sorted)
plans = st.builds(
    lambda shares, hold_s, wait_s: RolloutPlan(
        steps=tuple(RolloutStep(weight_bp=share, hold_s=hold_s) for share in shares), give_up_s=hold_s + wait_s
    ),
    weights,
    st.floats(0, 1_000),
    st.floats(0, 1_000),
)
reports = st.none() | st.tuples(*[st.sampled_from(VERDICTS)] * 4).map(lambda verdicts: report(*verdicts))


def report(*verdicts: Verdict) -> GateReport:
    checks = tuple(
        Check(name=name, verdict=verdict, detail=f"{name} said so")
        for name, verdict in zip(NAMES, verdicts, strict=False)
    )
    return GateReport(model="bot", version=2, champion=1, at=AT, checks=checks)


def after(seconds: float, step: int | None, seen: GateReport | None, plan: RolloutPlan = PLAN) -> Action:
    return decide(plan, Position(step, AT), seen, AT + timedelta(seconds=seconds))


def test_a_step_before_the_last_asks_for_its_time_its_samples_and_no_failure() -> None:
    enough = report("pass", "inconclusive", "inconclusive", "inconclusive")
    assert after(0, None, None) == Raise(0)
    assert after(9.9, 0, enough) == Hold()
    assert after(10, 0, enough) == Raise(1)
    assert after(10, 0, report("inconclusive", "pass", "pass", "pass")) == Hold()


def test_a_step_that_names_its_checks_asks_for_those_to_pass() -> None:
    steps = (RolloutStep(weight_bp=1_000, hold_s=10, checks={"errors": None}), PLAN.steps[1])
    plan = RolloutPlan(steps=steps, give_up_s=100)
    named = report("pass", "inconclusive")  # judged by these two alone
    assert after(10, 0, named, plan) == Hold()
    assert isinstance(after(101, 0, named, plan), Pause)
    assert after(10, 0, report("pass", "pass"), plan) == Raise(1)
    assert isinstance(after(0, 0, report("pass", "fail"), plan), TakeBack)


def test_what_nothing_looks_at_does_not_pass_where_a_step_asks_for_it() -> None:
    checks = report("pass", "pass", "pass", "fail").checks
    assert named_alone(checks, ["errors"]) == checks[:2]
    samples, guards, quality = named_alone(checks, ["guards", "quality"])
    assert (samples.verdict, guards.verdict, quality.verdict) == ("pass", "inconclusive", "inconclusive")
    assert guards.detail == "this step asks for it, and the model's guard policy looks at no answers"


def test_a_steps_own_limit_holds_there_and_the_plans_elsewhere() -> None:
    step = RolloutStep(weight_bp=1_000, checks={"errors": 0.5, "tokens": None, "latency": 3.0})
    plan = RolloutPlan(steps=(step, RolloutStep(weight_bp=5_000)), limits=Limits(token_ratio=2.0, error_margin=0.1))
    assert plan.steps[0].limits(plan.limits) == Limits(token_ratio=2.0, error_margin=0.5, latency_ratio=3.0)
    assert plan.steps[1].limits(plan.limits) == plan.limits
    assert RolloutPlan.model_validate(plan.model_dump(mode="json")) == plan


def test_a_plan_that_was_stored_before_steps_had_checks_reads_as_it_did() -> None:
    stored = {"steps": [{"weight_bp": 1_000, "hold_s": 60.0, "min_samples": 30}], "limits": {}, "give_up_s": 3600.0}
    assert RolloutPlan.model_validate(stored).steps == (RolloutStep(weight_bp=1_000),)


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        ({"errors": 0}, r"checks\.errors: input should be greater than 0 \(given: 0\)"),
        ({"latency": 0.9}, r"checks\.latency: input should be greater than 1 \(given: 0\.9\)"),
        ({"quality": 0.5}, r"checks\.quality takes no limit"),
        ({"tokens": None}, r"steps\.0\.checks\.tokens has no limit: give it one there, or limits\.token_ratio"),
        ({}, "at least 1 item"),
    ],
)
def test_checks_that_cannot_be_judged_are_refused(checks: dict[CheckName, float | None], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RolloutPlan(steps=(RolloutStep(weight_bp=1_000, checks=checks),))


def test_the_last_step_asks_for_every_check() -> None:
    assert after(20, 1, report("pass", "pass", "pass", "inconclusive")) == Hold()
    assert after(19.9, 1, report("pass", "pass", "pass", "pass")) == Hold()
    assert after(20, 1, report("pass", "pass", "pass", "pass")) == Ship()


def test_a_failure_is_acted_on_at_once_and_says_what_failed() -> None:
    assert after(0, 0, report("inconclusive", "fail", "pass", "fail")) == TakeBack(
        "errors: errors said so; feedback: feedback said so"
    )


def test_what_nothing_decides_is_paused_after_its_time_and_says_what_is_missing() -> None:
    undecided = report("pass", "pass", "pass", "inconclusive")
    assert after(100, 1, undecided) == Hold()
    assert after(101, 1, undecided) == Pause("nothing decided after 101 s: feedback: feedback said so")
    assert after(101, 0, None) == Pause("nothing decided after 101 s: nothing was judged")


@given(plan=plans, seen=reports, seconds=st.floats(0, 5_000), pick=st.integers(0, 4))
def test_nothing_is_given_without_a_reason(
    plan: RolloutPlan, seen: GateReport | None, seconds: float, pick: int
) -> None:
    step = pick % len(plan.steps)
    said = {check.name: check.verdict for check in seen.checks} if seen else {}
    held = after(seconds, step, seen, plan)
    assert isinstance(held, TakeBack) == ("fail" in said.values())
    if isinstance(held, Raise | Ship):
        assert said["samples"] == "pass"
        assert seconds >= plan.steps[step].hold_s - 1e-6  # times are kept to the microsecond
    match held:
        case Raise(to):
            assert to == step + 1 < len(plan.steps), "no step is left out"
        case Ship():
            assert step == len(plan.steps) - 1
            assert set(said.values()) == {"pass"}
        case Pause():
            assert seconds > plan.give_up_s - 1e-6


@given(plan=plans, seen=reports, first=st.floats(0, 5_000), more=st.floats(0, 5_000), pick=st.integers(0, 4))
def test_waiting_undoes_no_decision(
    plan: RolloutPlan, seen: GateReport | None, first: float, more: float, pick: int
) -> None:
    """With the same judgement a later look decides the same, or decides at last."""
    step = pick % len(plan.steps)
    early, late = after(first, step, seen, plan), after(first + more, step, seen, plan)
    if isinstance(early, Pause):
        assert isinstance(late, Pause)
    elif early != Hold():
        assert late == early


@given(plan=plans, seen=st.lists(reports, max_size=40))
def test_any_course_of_a_rollout_gives_the_steps_in_order_and_ends_once(
    plan: RolloutPlan, seen: list[GateReport | None]
) -> None:
    given: list[int] = []
    step, since, now = None, AT, AT
    for found in seen:
        now += timedelta(seconds=plan.give_up_s / 2 + 1)
        match decide(plan, Position(step, since), found if step is not None else None, now):
            case Raise(to):
                given.append(plan.steps[to].weight_bp)
                step, since = to, now
            case Ship() | TakeBack() | Pause():
                break
    assert given == [s.weight_bp for s in plan.steps][: len(given)]
    assert all(low < high for low, high in pairwise(given))


@given(plan=plans, share=st.integers(0, 9_999))
def test_a_share_that_is_there_already_is_taken_up_at_the_step_it_reached(plan: RolloutPlan, share: int) -> None:
    reached = plan.reached(share)
    assert sum(step.weight_bp <= share for step in plan.steps) == (0 if reached is None else reached + 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": ()}, "needs a step to judge on; `tuneloop promote`"),
        ({"steps": (RolloutStep(weight_bp=5_000), RolloutStep(weight_bp=1_000))}, "must rise"),
        ({"steps": (RolloutStep(weight_bp=1_000), RolloutStep(weight_bp=1_000))}, "must rise"),
        ({"give_up_s": 59.0}, "give_up_s 59 is under hold_s 60: a step could never be decided"),
        ({"give_up_s": float("nan")}, "finite number"),
        ({"give_up_s": float("inf")}, "finite number"),
        ({"steps": ({"weight_bp": 0},)}, "greater than 0"),
        ({"steps": ({"weight_bp": 10_000},)}, "less than 10000"),
        ({"steps": ({"weight_bp": 1_000, "hold_s": -1.0},)}, "greater than or equal to 0"),
        ({"steps": ({"weight_bp": 1_000, "min_samples": 0},)}, "greater than or equal to 1"),
        ({"limits": {"token_ratio": 1.0}}, "greater than 1"),
    ],
)
def test_a_plan_that_is_none_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RolloutPlan.model_validate(fields)


def _route(*arms: tuple[int, int], overrides: dict[str, int] | None = None) -> Route:
    made = tuple(Arm(version=version, weight_bp=weight_bp) for version, weight_bp in arms)
    return Route(model="bot", revision=1, arms=made, salt="s", by="a", reason="r", at=AT, overrides=overrides or {})


def test_what_moves_nobody_is_the_same_to_a_rollout() -> None:
    here = who_gets_what(_route((2, 1_000), (1, 9_000)))
    assert here == who_gets_what(_route((2, 1_000), (1, 9_000), overrides={"k": 2}))
    assert here == who_gets_what(_route((2, 1_000), (3, 0), (1, 9_000)))
    assert here != who_gets_what(_route((2, 1_001), (1, 8_999)))
    assert here != who_gets_what(_route((3, 1_000), (1, 9_000)))
    assert here != who_gets_what(_route((1, 9_000), (2, 1_000))), "the champion is another"
    assert who_gets_what(_route((2, 500), (3, 500), (1, 9_000))) != who_gets_what(
        _route((3, 500), (2, 500), (1, 9_000))
    ), "the same shares, but other buckets"
