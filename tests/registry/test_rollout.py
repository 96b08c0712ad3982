"""A rollout from its first step to its end, against the heartbeats and traffic that a thread writes.

The thread does what an engine, a gateway and two hundred users do; the stores are the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.world import CHANGE, KEYS, World, splits
from tests_support import publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import DatabaseAway, Refused, Unavailable
from tuneloop.registry.nouns import Arm, GateReport, Route, utc_now
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.judging import Trial, trial_of
from tuneloop.registry.rollouts.rollout import RolloutPlan, RolloutStep
from tuneloop.registry.rollouts.steering import declare, drive
from tuneloop.registry.routes.assignment import assign
from tuneloop.registry.routes.promotion import Change, promote, set_route

LIMITS = Limits(feedback_margin=0.2, error_margin=0.1)
STEPS = tuple(RolloutStep(weight_bp=share_bp, hold_s=0.0, min_samples=20) for share_bp in (1_000, 5_000))
PLAN = RolloutPlan(steps=STEPS, limits=LIMITS, give_up_s=60.0)
NO_TRAFFIC = RolloutPlan(steps=STEPS, limits=LIMITS, give_up_s=0.2)


def _quiet(_line: str) -> None:
    """What a rollout says is looked at elsewhere."""


def run(
    registry: Registry, model: str, version: int, plan: RolloutPlan, change: Change, say: Callable[[str], None]
) -> GateReport:
    return drive(registry, declare(registry, model, version, plan, change), say)


def test_a_good_version_rises_step_by_step_to_everything(registry: Registry, world: World) -> None:
    world.score = {1: 0.5, 2: 0.8}
    said: list[str] = []
    report = run(registry, "bot", 2, PLAN, CHANGE, said.append)
    assert report.verdict == "pass"
    assert splits(registry) == [
        {1: 10_000},
        {2: 0, 1: 10_000},  # staged: loaded before anybody gets it
        {2: 1_000, 1: 9_000},
        {2: 5_000, 1: 5_000},
        {1: 0, 2: 10_000},
    ]
    assert [route.by for route in registry.routes.history("bot")] == ["ada"] * 5
    assert registry.retraining.get("rt_1").state == "shipped"
    [verdict] = [e for e in registry.audit.entries("bot@2") if e.action == "rollout.verdict"]
    assert (verdict.detail["outcome"], verdict.detail["verdict"]) == ("promoted", "pass")
    assert [line for line in said if line.startswith("revision")] == [
        "revision 3: bot@2 10 %, bot@1 the rest",
        "revision 4: bot@2 50 %, bot@1 the rest",
        "revision 5: bot@2 100 %",
    ]


def test_no_key_moves_back_over_a_rollouts_revisions(registry: Registry, world: World) -> None:
    world.score = {1: 0.5, 2: 0.8}
    run(registry, "bot", 2, PLAN, CHANGE, _quiet)
    held: set[str] = set()
    for route in reversed(registry.routes.history("bot")):
        now = {key for key in KEYS if assign(route, key) == 2}
        assert held <= now
        held = now
    assert held == set(KEYS)


def test_a_bad_version_is_rolled_back_and_its_request_rejected(registry: Registry, world: World) -> None:
    world.score = {1: 0.9, 2: 0.1}
    with pytest.raises(Refused, match=r"bot@2 was rolled back: feedback: score -0\.\d+"):
        run(registry, "bot", 2, PLAN, CHANGE, _quiet)
    route = registry.routes.current("bot")
    assert route.split == {2: 0, 1: 10_000}
    assert route.reason.startswith("rollout failed: feedback")
    assert registry.retraining.get("rt_1").state == "rejected"
    assert registry.audit.entries("bot@2")[0].detail["outcome"] == "rolled back"


def test_a_bad_version_is_rolled_back_even_onto_a_champion_that_was_forced(registry: Registry, world: World) -> None:
    with registry.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM approvals WHERE version = 1")
    world.score = {1: 0.9, 2: 0.1}
    with pytest.raises(Refused, match="was rolled back"):
        run(registry, "bot", 2, PLAN, CHANGE, _quiet)
    assert registry.routes.current("bot").split == {2: 0, 1: 10_000}


@pytest.mark.parametrize("scores", [{1: 0.9, 2: 0.1}, {1: 0.5, 2: 0.8}])
def test_a_database_that_is_away_for_a_moment_pauses_nothing(
    scores: dict[int, float], registry: Registry, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would leave a failing version its share until a person comes."""
    world.score, cut = scores, list[int]()
    write = registry.routes.write

    def cut_once(*arguments: Any, **values: Any) -> Route:
        cut.append(1)
        if len(cut) in {2, 4}:
            raise DatabaseAway("database: connection reset")
        return write(*arguments, **values)

    monkeypatch.setattr(registry.routes, "write", cut_once)
    with suppress(Refused):
        run(registry, "bot", 2, PLAN, CHANGE, _quiet)
    assert len(cut) >= 2
    [over] = registry.rollouts.all("bot")
    assert over.state == ("rolled back" if scores[1] > scores[2] else "shipped")


@pytest.mark.parametrize(
    ("scores", "split", "outcome"),
    [({1: 0.9, 2: 0.1}, {2: 0, 1: 10_000}, "rolled back"), ({1: 0.5, 2: 0.8}, {1: 0, 2: 10_000}, "promoted")],
)
def test_a_gateway_that_is_late_at_the_end_hides_no_verdict(
    registry: Registry,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    scores: dict[int, float],
    split: dict[int, int],
    outcome: str,
) -> None:
    follow = registry.fleet.wait_applied

    def late(model: str, revision: int, timeout_s: float) -> list[str]:
        if revision > 2 and registry.routes.at(model, revision).split == split:  # 2 is staged, before it rises
            raise Unavailable(f"revision {revision} is written, but g1 does not apply it")
        return follow(model, revision, timeout_s)

    monkeypatch.setattr(registry.fleet, "wait_applied", late)
    world.score = scores
    with pytest.raises(Unavailable, match=rf"bot@2 was {outcome}.*; revision \d is written, but g1 does not apply it"):
        run(registry, "bot", 2, PLAN, CHANGE, _quiet)
    assert registry.routes.current("bot").split == split
    [verdict] = [e for e in registry.audit.entries("bot@2") if e.action == "rollout.verdict"]
    assert verdict.detail["outcome"] == outcome


def test_without_samples_a_rollout_pauses_where_it_is(registry: Registry, world: World) -> None:
    with pytest.raises(
        Refused, match=r"paused at 10 %, nothing decided .*samples: 0 answered on this step, at least 20.*promote"
    ):
        run(registry, "bot", 2, NO_TRAFFIC, CHANGE, _quiet)
    assert registry.routes.current("bot").split == {2: 1_000, 1: 9_000}
    assert registry.retraining.get("rt_1").state == "gated"
    assert registry.audit.entries("bot@2")[0].detail["outcome"] == "paused"


def test_a_paused_rollout_is_judged_at_the_step_it_had_reached_before_it_rises(
    registry: Registry, world: World
) -> None:
    for _ in range(2):  # the second begins where the first stopped, and pauses there again: nobody has asked yet
        with pytest.raises(Refused, match="paused at 10 %"):
            run(registry, "bot", 2, NO_TRAFFIC, CHANGE, _quiet)
    revision = registry.routes.current("bot").revision
    world.score = {1: 0.5, 2: 0.8}
    said: list[str] = []
    run(registry, "bot", 2, PLAN, CHANGE, said.append)
    assert said[0] == f"revision {revision}: bot@2 has 10 % already; judging there first"
    assert splits(registry)[revision:] == [{2: 5_000, 1: 5_000}, {1: 0, 2: 10_000}]


def test_a_rollout_killed_before_its_last_step_is_judged_there_and_promoted(registry: Registry, world: World) -> None:
    set_route(registry, "bot", {2: 5_000, 1: 5_000}, CHANGE)
    revision = registry.routes.current("bot").revision
    world.score = {1: 0.5, 2: 0.8}
    assert run(registry, "bot", 2, PLAN, CHANGE, _quiet).verdict == "pass"
    assert splits(registry)[revision:] == [{1: 0, 2: 10_000}]


def test_somebody_elses_revision_stops_a_rollout_and_stays(registry: Registry, world: World) -> None:
    def interfere() -> None:
        deadline = time.monotonic() + 60
        while (route := registry.routes.current("bot")).split.get(2, 0) == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        arms = [Arm(version=2, weight_bp=300), Arm(version=1, weight_bp=9_700)]
        registry.routes.write("bot", arms, by="grace", reason="less", expected_revision=route.revision)

    other = threading.Thread(target=interfere)
    other.start()
    with pytest.raises(Refused, match="grace wrote revision 4"):
        run(registry, "bot", 2, PLAN, CHANGE, _quiet)
    other.join()
    assert registry.routes.current("bot").by == "grace"


def test_the_version_kept_for_rollback_gives_way_to_the_new_champions_predecessor(
    registry: Registry, world: World, tmp_path: Path
) -> None:
    """Arms at weight 0 stay while the rollout runs, so it can be taken back; afterwards only the last champion does."""
    promote(registry, "bot", 2, CHANGE)
    publish_version(registry, tmp_path / "v3")
    registry.gates.approve("bot", 3, by="ada", reason="test")
    world.score = {1: 0.5, 2: 0.5, 3: 0.8}
    run(registry, "bot", 3, PLAN, CHANGE, _quiet)
    assert splits(registry)[-3:] == [
        {1: 0, 3: 1_000, 2: 9_000},
        {1: 0, 3: 5_000, 2: 5_000},
        {2: 0, 3: 10_000},
    ]


def test_one_rollout_at_a_time(registry: Registry, world: World, tmp_path: Path) -> None:
    publish_version(registry, tmp_path / "v3")
    registry.gates.approve("bot", 3, by="ada", reason="test")
    set_route(registry, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    with pytest.raises(Refused, match=r"bot@2 has a share.*tuneloop rollback bot"):
        run(registry, "bot", 3, PLAN, CHANGE, _quiet)
    with pytest.raises(Refused, match="bot@1 is the champion already"):
        run(registry, "bot", 1, PLAN, CHANGE, _quiet)
    assert registry.routes.current("bot").split == {2: 1_000, 1: 9_000}


def test_what_is_compared_begins_when_the_version_last_got_a_share(registry: Registry, world: World) -> None:
    with pytest.raises(Refused, match="bot@2 has no share"):
        trial_of(registry, "bot", 2)
    set_route(registry, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    set_route(registry, "bot", {2: 0, 1: 10_000}, CHANGE)
    again = set_route(registry, "bot", {2: 500, 1: 9_500}, CHANGE)
    assert trial_of(registry, "bot", 2) == Trial(again.at, again.revision)
    step = set_route(registry, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    set_route(registry, "bot", {2: 1_000, 1: 9_000}, CHANGE)  # somebody writes the same share again: the same step
    assert trial_of(registry, "bot", 2) == Trial(again.at, step.revision)


def test_a_step_without_traffic_of_its_own_does_not_pass_on_an_earlier_steps(registry: Registry, world: World) -> None:
    """The clock of whoever waits for it goes ahead once the step is reached."""
    world.score = {1: 0.5, 2: 0.8}
    world.asks_below_bp = 5_000
    ahead = timedelta(0)

    def until_reached(line: str) -> None:
        nonlocal ahead
        if line.startswith("revision 4: bot@2 50 %"):
            ahead = timedelta(seconds=PLAN.give_up_s + 1)

    with (
        Registry.open(registry.settings, clock=lambda: utc_now() + ahead) as waiting,
        pytest.raises(Refused, match=r"paused at 50 %.*answered on this step, at least 20"),
    ):
        run(waiting, "bot", 2, PLAN, CHANGE, until_reached)
    assert registry.routes.current("bot").split == {2: 5_000, 1: 5_000}
