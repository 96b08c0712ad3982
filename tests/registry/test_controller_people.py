"""People who step in while a controller goes on with a rollout, on both databases: they are obeyed, at any moment.

No engine and no gateway lives here, so nothing waits for one.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from registry.rolling import GRACE, PLAN, now, pass_time
from registry.world import CHANGE, KEYS, Users, splits
from tests_support import Clock, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, Refused
from tuneloop.registry.rollouts.advancing import judged
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.rollout import Rollout, RolloutState
from tuneloop.registry.rollouts.steering import abort, declare, resume
from tuneloop.registry.routes.assignment import held_out, key_hash
from tuneloop.registry.routes.promotion import hold_out, override, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback

S = RolloutState


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


def test_keys_with_a_version_of_their_own_do_not_stop_a_rollout(
    registries: Registry, users: Users, clock: Clock
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    override(registries, "bot", {"tester-7": 2}, GRACE)
    set_route(registries, "bot", {2: 1_000, 1: 9_000}, GRACE)  # the same again
    pass_time(registries, users, clock, controller)
    assert splits(registries)[-1] == {2: 5_000, 1: 5_000}
    override(registries, "bot", {"tester-8": 2}, GRACE)
    pass_time(registries, users, clock, controller)
    assert now(registries).state is S.SHIPPED
    assert len(registries.routes.current("bot").overrides) == 2, "who was named still has it"


def test_who_is_held_out_counts_for_no_arm_and_holding_out_more_pauses(
    registries: Registry, users: Users, clock: Clock
) -> None:
    """The champion's users who are held out are its concurrent traffic, but no split drew them."""
    hold_out(registries, "bot", 2_000, GRACE)
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    route = registries.routes.current("bot")
    assert route.holdout_bp == 2_000
    clock.advance(1)
    users.ask(route, KEYS * 3)
    report = judged(registries, now(registries))
    assert report is not None
    by_split = 3 * sum(not held_out(route, key_hash(key)) for key in KEYS)
    asked = [int(number) for number in re.findall(r"of (\d+)", report.checks[1].detail)]
    assert sum(asked) == by_split < 3 * len(KEYS)
    records = registries.traffic.window("bot")
    assert sum(held_out(route, r.key_hash) for r in records) == 3 * len(KEYS) - by_split, "a record tells"
    hold_out(registries, "bot", 3_000, GRACE)
    controller.turn()
    assert (now(registries).state, "grace wrote revision" in now(registries).outcome) == (S.PAUSED, True)


@pytest.mark.parametrize("change", ["set", "rollback", "other canary"])
def test_somebody_elses_change_pauses_a_rollout_and_stays(
    registries: Registry, users: Users, clock: Clock, tmp_path: Path, change: str
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    if change == "set":
        theirs = set_route(registries, "bot", {2: 300, 1: 9_700}, GRACE)
    elif change == "rollback":
        theirs = rollback(registries, "bot", GRACE)
    else:
        publish_version(registries, tmp_path / "v3")
        registries.gates.approve("bot", 3, by="ada", reason="test")
        theirs = set_route(registries, "bot", {3: 300, 1: 9_700}, GRACE)
    pass_time(registries, users if change != "other canary" else Users(registries, {1: 0.5, 3: 0.5}), clock, controller)
    paused = now(registries)
    assert paused.state is S.PAUSED
    assert paused.outcome == f"grace wrote revision 3 ({theirs.split_text}, 'knows better') meanwhile"
    assert registries.routes.current("bot") == theirs
    controller.turn()
    assert registries.routes.current("bot") == theirs


def test_a_paused_rollout_goes_on_from_where_the_route_stands(registries: Registry, users: Users, clock: Clock) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    with pytest.raises(Refused, match=r"ro_.* of bot@2 is running; only a paused one can be resumed"):
        resume(registries, "bot", GRACE)
    set_route(registries, "bot", {2: 6_000, 1: 4_000}, GRACE)
    controller.turn()
    resumed = resume(registries, "bot", GRACE)
    assert (resumed.state, resumed.step, resumed.outcome) == (S.RUNNING, 1, "")
    assert [(t.weight_bp, t.found) for t in resumed.taken] == [(1_000, False), (6_000, True)]
    pass_time(registries, users, clock, controller, looks=2)
    assert now(registries).state is S.SHIPPED
    assert [e.actor for e in registries.audit.entries("bot@2", action="rollout.resume")] == ["grace"]


def test_a_rollout_that_lost_its_share_begins_at_its_first_step_when_it_is_resumed(
    registries: Registry, users: Users, clock: Clock
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    rollback(registries, "bot", GRACE)
    controller.turn()
    assert resume(registries, "bot", GRACE).step is None
    controller.turn()
    assert splits(registries)[-1] == {2: 1_000, 1: 9_000}


def test_a_person_who_promotes_ends_the_rollout(registries: Registry, users: Users, clock: Clock) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    promote(registries, "bot", 2, GRACE)
    controller.turn()
    assert (now(registries).state, now(registries).outcome) == (
        S.SHIPPED,
        "grace gave it everything in revision 3: knows better",
    )


def test_aborting_needs_no_controller_and_takes_the_share_away_at_once(
    registries: Registry, users: Users, clock: Clock
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    Controller(registries).turn()
    assert abort(registries, "bot", GRACE)[1].split == {2: 0, 1: 10_000}
    over = now(registries)
    assert (over.state, over.outcome) == (S.ABORTED, "grace: knows better")
    assert registries.rollouts.open("bot") is None
    with pytest.raises(InvalidInput, match="no rollout of bot is open; `tuneloop rollback bot`"):
        abort(registries, "bot", GRACE)
    Controller(registries).turn()
    assert splits(registries)[-1] == {2: 0, 1: 10_000}


def test_aborting_comes_before_a_controller_that_goes_on_at_the_same_moment(
    registries: Registry, users: Users, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller, stepped = Controller(registries), list[bool]()

    def step_first(model: str) -> Rollout | None:
        seen = type(registries.rollouts).open(registries.rollouts, model)
        if not stepped:
            stepped.append(True)
            controller.turn()
        return seen

    monkeypatch.setattr(registries.rollouts, "open", step_first)
    assert abort(registries, "bot", GRACE)[1].split == {2: 0, 1: 10_000}
    assert now(registries).state is S.ABORTED


def test_aborting_before_the_first_step_changes_no_route(registries: Registry, users: Users) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    assert abort(registries, "bot", GRACE)[1].revision == 1
    assert now(registries).state is S.ABORTED
    declare(registries, "bot", 2, PLAN, CHANGE)


def test_nobody_decides_in_time_and_a_person_is_asked(registries: Registry, users: Users, clock: Clock) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    clock.advance(601)
    controller.turn()
    paused = now(registries)
    assert (paused.state, paused.outcome[:32]) == (S.PAUSED, "nothing decided after 601 s: sam")
    assert splits(registries)[-1] == {2: 1_000, 1: 9_000}, "the share stays where it is"
    assert registries.retraining.get("rt_1").state == "gated"
    resume(registries, "bot", GRACE)
    pass_time(registries, users, clock, controller, looks=4)
    assert now(registries).state is S.SHIPPED


def test_a_version_whose_approval_is_revoked_meanwhile_is_not_raised(
    registries: Registry, users: Users, clock: Clock
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    registries.gates.revoke("bot", 2, by="grace", reason="riddles")
    pass_time(registries, users, clock, controller, looks=2)
    paused = now(registries)
    assert (paused.state, "its approval was revoked by grace: riddles" in paused.outcome) == (S.PAUSED, True)
    assert splits(registries)[-1] == {2: 1_000, 1: 9_000}
    registries.gates.revoke("bot", 2, by="grace", reason="riddles")
    with pytest.raises(Refused, match="is not approved"):
        declare(registries, "bot", 2, PLAN, CHANGE)


def test_a_newer_declaration_takes_the_place_of_an_open_one_of_the_same_version(
    registries: Registry, users: Users, clock: Clock
) -> None:
    first = declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    second = declare(registries, "bot", 2, PLAN.model_copy(update={"give_up_s": 700.0}), GRACE)
    old = registries.rollouts.get(first.id)
    assert (old.state, old.outcome) == (S.ABORTED, f"grace declared {second.id} of bot@2 in its place")
    assert (second.step, second.taken[0].found) == (0, True), "judged at the share it has before it rises"
    pass_time(registries, users, clock, controller, looks=3)
    assert registries.rollouts.get(second.id).state is S.SHIPPED


def test_one_rollout_is_open_at_a_time_whoever_declares(registries: Registry, users: Users, tmp_path: Path) -> None:
    publish_version(registries, tmp_path / "v3")
    registries.gates.approve("bot", 3, by="ada", reason="test")
    declare(registries, "bot", 2, PLAN, CHANGE)
    with pytest.raises(Refused, match=r"bot@2 is being rolled out \(ro_.*rollout abort bot"):
        declare(registries, "bot", 3, PLAN, CHANGE)
    another = now(registries).model_copy(update={"id": "ro_another", "version": 3})
    with pytest.raises(Conflict, match="somebody else declared a rollout of bot just now"):
        registries.rollouts.declare(another)
    assert [rollout.version for rollout in registries.rollouts.all("bot")] == [2]
