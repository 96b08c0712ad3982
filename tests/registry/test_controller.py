"""Controllers at work on both databases: one at a time goes on with a rollout, and writes each step once.

No engine and no gateway lives here, so nothing waits for one; with both it is test_rollout and test_controller_kills.
People who step in are in test_controller_people.
"""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.rolling import GRACE, PLAN, now, pass_time
from registry.world import CHANGE, KEYS, Users, set_up, splits
from tests_support import Clock, beat_gateway
from tuneloop.registry import Registry
from tuneloop.registry.aliases.watch import AliasWatch
from tuneloop.registry.errors import Conflict, Unavailable
from tuneloop.registry.guard_policy import GuardPolicy, OutputGuards
from tuneloop.registry.nouns import Arm, Route
from tuneloop.registry.rollouts.advancing import go_on
from tuneloop.registry.rollouts.controller import LEASE_S, Controller
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.rollouts.steering import abort, declare
from tuneloop.registry.rollouts.store import LATELY_S
from tuneloop.registry.routes.assignment import assign
from tuneloop.registry.routes.promotion import set_route
from tuneloop.registry.settings import ControllerSettings

S = RolloutState


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


def test_a_declared_rollout_is_gone_on_with_to_its_end(registries: Registry, users: Users, clock: Clock) -> None:
    declared = declare(registries, "bot", 2, PLAN, CHANGE)
    assert splits(registries) == [{1: 10_000}], "declaring moves nobody"
    controller = Controller(registries)
    controller.turn()
    assert (now(registries).step, splits(registries)[-1]) == (0, {2: 1_000, 1: 9_000})
    pass_time(registries, users, clock, controller, looks=4)
    over = registries.rollouts.get(declared.id)
    assert (over.state, over.outcome) == (S.SHIPPED, "every check passed")
    assert splits(registries) == [{1: 10_000}, {2: 1_000, 1: 9_000}, {2: 5_000, 1: 5_000}, {1: 0, 2: 10_000}]
    assert [(t.weight_bp, t.revision) for t in over.taken] == [(1_000, 2), (5_000, 3), (10_000, 4)]
    assert [bool(t.checks) for t in over.taken] == [True, True, False], "each share but the last was judged"
    assert registries.retraining.get("rt_1").state == "shipped"
    steps = registries.audit.entries("bot", action="rollout.step")
    assert [entry.detail["rollout"] for entry in steps] == [declared.id] * 2
    assert {entry.actor for entry in steps} == {"ada"}, "who declared it answers for its steps"
    assert registries.audit.verify().faults == ()
    controller.turn()
    assert len(splits(registries)) == 4


def test_a_lease_by_a_clock_that_was_an_hour_ahead_holds_nobody_off(
    registries: Registry, users: Users, clock: Clock
) -> None:
    declared = declare(registries, "bot", 2, PLAN, CHANGE)
    rollouts = registries.rollouts
    assert rollouts.claim(declared.id, "killed", LEASE_S) is not None
    clock.advance(-2 * LEASE_S)
    assert rollouts.claim(declared.id, "next", LEASE_S) is None, "clocks differ a little"
    clock.advance(-3_600)
    taken = rollouts.claim(declared.id, "next", LEASE_S)
    assert taken is not None
    assert (taken.lease_owner, taken.fencing_token) == ("next", 2)
    clock.advance(-3_600)  # and once more, under the one that holds it
    kept = rollouts.claim(declared.id, "next", LEASE_S)
    assert kept is not None
    assert kept.lease_until is not None
    assert (kept.lease_until - clock()).total_seconds() == LEASE_S
    assert kept.fencing_token == 2


def test_a_failed_check_takes_the_version_back(registries: Registry, users: Users, clock: Clock) -> None:
    users.score = {1: 0.9, 2: 0.1}
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    users.ask(registries.routes.current("bot"), KEYS * 3)
    clock.advance(1)  # long before the step's time is over
    pass_time(registries, users, clock, controller)
    over = now(registries)
    assert (over.state, over.outcome[:15]) == (S.ROLLED_BACK, "feedback: score")
    assert splits(registries)[-1] == {2: 0, 1: 10_000}
    assert registries.retraining.get("rt_1").state == "rejected"
    [verdict] = registries.audit.entries("bot@2", action="rollout.verdict")
    assert (verdict.detail["outcome"], verdict.detail["verdict"]) == ("rolled back", "fail")


def test_a_step_is_judged_by_the_checks_it_names_and_the_next_by_every_one(
    registries: Registry, users: Users, clock: Clock
) -> None:
    users.score = {1: 0.9, 2: 0.1}
    first = PLAN.steps[0].model_copy(update={"checks": {"errors": 0.5, "latency": None}})
    declare(registries, "bot", 2, PLAN.model_copy(update={"steps": (first, PLAN.steps[1])}), CHANGE)
    controller = Controller(registries)
    controller.turn()
    pass_time(registries, users, clock, controller)
    assert (now(registries).state, now(registries).step) == (S.RUNNING, 1), "feedback is not asked for there"
    assert [check.name for check in now(registries).taken[0].checks] == ["samples", "errors", "latency"]
    pass_time(registries, users, clock, controller)
    assert (now(registries).state, now(registries).outcome[:15]) == (S.ROLLED_BACK, "feedback: score")


def test_a_version_in_whose_answers_guards_find_more_is_taken_back(
    registries: Registry, users: Users, clock: Clock
) -> None:
    registries.policies.set("bot", GuardPolicy(output=OutputGuards()), by="ada", reason="r")
    users.guards = {2: {"output.secrets": "redact: AWS key"}}
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    pass_time(registries, users, clock, controller)
    assert now(registries).state is S.ROLLED_BACK
    assert re.match(r"guards: (\d+) of \1 had a find of the guards, champion 0 of \d+$", now(registries).outcome)
    assert splits(registries)[-1] == {2: 0, 1: 10_000}


def test_a_second_controller_does_nothing_until_the_lease_has_run_out(
    registries: Registry, users: Users, clock: Clock
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    first, second = Controller(registries), Controller(registries)
    first.turn()
    held = now(registries)
    assert held.lease_owner == first.owner
    second.turn()
    assert now(registries) == held
    clock.advance(LEASE_S + 1)
    second.turn()
    taken = now(registries)
    assert (taken.lease_owner, taken.fencing_token) == (second.owner, held.fencing_token + 1)
    first.turn()
    assert now(registries) == taken
    [entry] = registries.audit.entries("bot@2", action="rollout.take_over")
    assert (entry.actor, entry.detail["reason"]) == ("controller", f"{first.owner} did not let go of its lease")
    assert registries.rollouts.taken_over(taken) == 1
    clock.advance(LATELY_S)
    assert registries.rollouts.taken_over(taken) == 0, "an hour later that is history"


def test_a_controller_that_ends_in_order_hands_over_at_once(registries: Registry, users: Users, clock: Clock) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    first, second = Controller(registries), Controller(registries)
    first.turn()
    first.release()
    second.turn()
    assert now(registries).lease_owner == second.owner
    assert registries.rollouts.taken_over(now(registries)) == 0


def test_what_a_controller_writes_after_its_lease_is_lost_is_refused_whole(
    registries: Registry, users: Users, clock: Clock
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    late = registries.rollouts.claim(now(registries).id, "slow", LEASE_S)
    assert late is not None
    clock.advance(LEASE_S + 1)
    Controller(registries).turn()
    before = (splits(registries), now(registries), registries.audit.entries(limit=1_000))
    with pytest.raises(Conflict, match=r"you saw revision|another controller went on with it"):
        go_on(registries, late, controller="slow")
    with pytest.raises(Conflict, match="another controller went on with it; nothing was changed"):
        set_route(
            registries,
            "bot",
            {2: 3_000, 1: 7_000},
            CHANGE,
            follow=lambda connection, route: _ignored(registries.rollouts.step(connection, late, 0, route, None)),
        )
    assert (splits(registries), now(registries), registries.audit.entries(limit=1_000)) == before


def _ignored(_value: object) -> None:
    """A follow returns nothing."""


def test_a_gateway_that_is_late_holds_no_rollout_up(
    registries: Registry, users: Users, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    beat_gateway(registries, {"bot": 1})
    monkeypatch.setattr(registries.fleet, "wait_applied", _late)
    controller = Controller(registries)
    with pytest.raises(Unavailable, match="g1 is late"):
        controller.look(now(registries).id)
    assert (now(registries).state, now(registries).step) == (S.RUNNING, 0)
    pass_time(registries, users, clock, controller, looks=4)
    assert now(registries).state is S.SHIPPED


def _late(_model: str, revision: int, _timeout_s: float) -> list[str]:
    raise Unavailable(f"revision {revision} is written, g1 is late")


def test_a_version_that_no_engine_can_load_pauses_its_rollout(
    registries: Registry, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_arguments: object, **_who: object) -> int:
        raise Unavailable("no live engine serves bot@2 after 120 s")

    monkeypatch.setattr("tuneloop.registry.routes.promotion.stage", away)
    declare(registries, "bot", 2, PLAN, CHANGE)
    Controller(registries).turn()
    assert (now(registries).state, now(registries).outcome) == (S.PAUSED, "no live engine serves bot@2 after 120 s")
    assert splits(registries) == [{1: 10_000}]


def test_five_controllers_at_once_write_each_step_once(registries: Registry) -> None:
    """Real time, five of them in threads with connections of their own; a lease of half a second changes hands."""
    settings, eager = registries.settings, ControllerSettings(every_s=0.02, aliases_every_s=1.0)
    opened = [Registry.open(settings) for _ in range(6)]
    set_up(opened[5])
    users, stop = Users(opened[5], {1: 0.5, 2: 0.8}), threading.Event()
    steps = tuple(step.model_copy(update={"hold_s": 0.3}) for step in PLAN.steps)
    declared = declare(opened[5], "bot", 2, PLAN.model_copy(update={"steps": steps}), CHANGE)
    threads = [
        threading.Thread(target=Controller(registry, eager, lease_s=0.5).run, args=(stop,)) for registry in opened[:5]
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 240
    while opened[5].rollouts.get(declared.id).state is S.RUNNING and time.monotonic() < deadline:
        users.ask(opened[5].routes.current("bot"))
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    over = opened[5].rollouts.get(declared.id)
    assert over.state is S.SHIPPED
    assert splits(opened[5]) == [{1: 10_000}, {2: 1_000, 1: 9_000}, {2: 5_000, 1: 5_000}, {1: 0, 2: 10_000}]
    assert len(opened[5].audit.entries("bot@2", action="rollout.verdict")) == 1
    assert opened[5].audit.verify().faults == ()
    for registry in opened:
        registry.close()


def _raises_once(act: Callable[..., None], error: Exception) -> tuple[Callable[..., None], list[int]]:
    """`act`, whose first call raises; and its calls so far."""
    calls: list[int] = []

    def called(*arguments: object, **named: object) -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise error
        act(*arguments, **named)

    return called, calls


@contextmanager
def _at_work(registry: Registry) -> Iterator[threading.Thread]:
    """A controller in a thread of its own, in real time."""
    stop, settings = threading.Event(), ControllerSettings(every_s=0.02, aliases_every_s=1.0)
    thread = threading.Thread(target=Controller(registry, settings).run, args=(stop,))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_an_error_nobody_foresaw_ends_neither_the_watch_nor_a_rollout_and_is_logged_with_its_origin(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_up(registry)
    declare(registry, "bot", 2, PLAN, CHANGE)
    turn, turns = _raises_once(AliasWatch.turn, ValueError("a day too far"))
    look, _looks = _raises_once(Controller.look, ValueError("no such hour"))
    monkeypatch.setattr(AliasWatch, "turn", turn)
    monkeypatch.setattr(Controller, "look", look)
    with _at_work(registry) as controller:
        _wait(lambda: len(turns) > 2 and now(registry).step == 0)
        assert controller.is_alive()
    assert (len(turns) > 2, now(registry).step) == (True, 0)
    said = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert sorted(said) == ["a day too far", "no such hour"]


def test_a_lease_does_not_make_a_judgement_newer(registries: Registry, users: Users, clock: Clock) -> None:
    declared = declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    clock.advance(10)
    controller.turn()
    judged_at = clock()
    assert now(registries).report.at == judged_at
    controller.release()
    clock.advance(LEASE_S)
    held = registries.rollouts.claim(declared.id, "another", LEASE_S)
    assert held is not None
    clock.advance(1)
    registries.rollouts.renew(held, LEASE_S)
    assert now(registries).report.at == judged_at


def test_no_thread_of_a_rollout_that_is_over_is_kept(registry: Registry) -> None:
    set_up(registry)
    declared = declare(registry, "bot", 2, PLAN, CHANGE)

    def threads() -> list[threading.Thread]:
        # By its type: asked for its class, an object of torch's may answer with a warning.
        found = [one for one in gc.get_objects() if issubclass(type(one), threading.Thread)]
        return [one for one in found if one.name == declared.id]

    with _at_work(registry):
        _wait(lambda: now(registry).step == 0)
        assert len(threads()) == 1
        abort(registry, "bot", GRACE)
        _wait(lambda: threads() == [])
        assert threads() == []


def test_a_controller_killed_after_staging_is_followed_by_one_that_raises(registries: Registry, users: Users) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    staged = [Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)]
    registries.routes.write("bot", staged, by="ada", reason="stage", expected_revision=1, action="route.stage")
    Controller(registries).turn()
    assert splits(registries) == [{1: 10_000}, {2: 0, 1: 10_000}, {2: 1_000, 1: 9_000}]


def test_no_key_moves_back_over_a_rollout(registries: Registry, users: Users, clock: Clock) -> None:
    declare(registries, "bot", 2, PLAN, CHANGE)
    controller = Controller(registries)
    controller.turn()
    pass_time(registries, users, clock, controller, looks=4)

    def theirs(route: Route) -> set[str]:
        return {key for key in KEYS if assign(route, key) == 2}

    held: set[str] = set()
    for route in reversed(registries.routes.history("bot")):
        assert held <= theirs(route)
        held = theirs(route)
