"""Rollouts in any order of what people, controllers, users and time do, on both databases.

A controller raises only what it wrote or found itself; every step stands once in the route, the rollout and the audit
log; what has ended stays as it ended.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from registry.world import CHANGE, KEYS, Users, set_up
from tests_support import Clock
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Refused
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.controller import LEASE_S, Controller
from tuneloop.registry.rollouts.rollout import OPEN, Rollout, RolloutPlan, RolloutStep, who_gets_what
from tuneloop.registry.rollouts.steering import abort, declare, resume
from tuneloop.registry.routes.promotion import Change, hold_out, override, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.routes.shadowing import shadow
from tuneloop.registry.settings import RegistrySettings

PLAN = RolloutPlan(
    steps=(
        RolloutStep(weight_bp=2_000, hold_s=5, min_samples=1),
        RolloutStep(weight_bp=5_000, hold_s=5, min_samples=1),
    ),
    limits=Limits(feedback_margin=0.5, error_margin=0.5, latency_ratio=3.0),
    give_up_s=60,
)
GRACE = Change("grace", "by hand")


class Rollouts(RuleBasedStateMachine):
    """Two versions, two controllers, and people who do as they like."""

    open_registry: Callable[[ExitStack, Clock], Registry]

    def __init__(self) -> None:
        super().__init__()
        self.stack, self.clock = ExitStack(), Clock()
        self.registry = self.open_registry(self.stack, self.clock)
        set_up(self.registry)
        self.users = Users(self.registry, {1: 0.5, 2: 0.5})
        self.controllers = (Controller(self.registry), Controller(self.registry))
        self.over: dict[str, Rollout] = {}

    version = st.integers(min_value=1, max_value=2)

    @initialize()
    def begin(self) -> None:
        declare(self.registry, "bot", 2, PLAN, CHANGE)

    @rule(version=version)
    def declare(self, version: int) -> None:
        self.perhaps(lambda: declare(self.registry, "bot", version, PLAN, CHANGE))

    @rule(which=st.integers(0, 1))
    def look(self, which: int) -> None:
        self.controllers[which].turn()

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(better=st.booleans(), times=st.integers(1, 3))
    def ask(self, better: bool, times: int) -> None:
        self.clock.advance(1)
        self.users.score = {1: 0.5, 2: 0.9} if better else {1: 0.9, 2: 0.0}
        for _ in range(times):
            self.users.ask(self.registry.routes.current("bot"), KEYS[:60])  # every look reads them all

    @rule(better=st.booleans())
    def go_on(self, better: bool) -> None:
        """What most often happens: time passes, everybody asks, a controller looks."""
        self.ask(better, 2)
        self.clock.advance(LEASE_S + 1)
        self.controllers[0].turn()

    @precondition(lambda self: self.registry.rollouts.open("bot") is not None)
    @rule(share_bp=st.integers(100, 9_900))
    def meddle(self, share_bp: int) -> None:
        """Somebody changes the split of a rollout that could go on."""
        self.go_on(better=True)
        self.set(share_bp)
        self.go_on(better=True)

    @rule()
    def resume(self) -> None:
        self.perhaps(lambda: resume(self.registry, "bot", GRACE))

    @rule()
    def abort(self) -> None:
        self.perhaps(lambda: abort(self.registry, "bot", GRACE))

    @rule(share_bp=st.integers(0, 10_000))
    def set(self, share_bp: int) -> None:
        set_route(self.registry, "bot", {2: share_bp, 1: 10_000 - share_bp}, GRACE)

    @rule(version=version)
    def promote(self, version: int) -> None:
        promote(self.registry, "bot", version, GRACE)

    @rule()
    def roll_back(self) -> None:
        self.perhaps(lambda: rollback(self.registry, "bot", GRACE))

    @rule(share_bp=st.sampled_from([0, 1_000]))
    def hold_out(self, share_bp: int) -> None:
        hold_out(self.registry, "bot", share_bp, GRACE)

    @precondition(lambda self: self.registry.routes.current("bot").split.get(2) is not None)
    @rule(key=st.sampled_from(["t1", "t2"]))
    def override(self, key: str) -> None:
        override(self.registry, "bot", {key: 2}, GRACE)

    @rule(version=version, share_bp=st.sampled_from([0, 1_000]))
    def shadow(self, version: int, share_bp: int) -> None:
        """It moves nobody, so an open rollout goes on whatever is shadowed."""
        before = who_gets_what(self.registry.routes.current("bot"))
        self.perhaps(lambda: shadow(self.registry, "bot", version, share_bp, GRACE))
        assert who_gets_what(self.registry.routes.current("bot")) == before

    @staticmethod
    def perhaps(act: Callable[[], object]) -> None:
        try:
            act()
        except (Refused, InvalidInput):
            return

    @invariant()
    def one_is_open_and_what_ended_stays(self) -> None:
        rollouts = self.registry.rollouts.all("bot").whole()
        assert sum(rollout.state in OPEN for rollout in rollouts) <= 1
        for rollout in rollouts:
            if rollout.id in self.over:
                assert rollout == self.over[rollout.id]
            elif rollout.state not in OPEN:
                self.over[rollout.id] = rollout

    @invariant()
    def every_step_stands_once_in_the_route_the_rollout_and_the_log(self) -> None:
        logged = {
            entry.detail["revision"]: entry.detail["rollout"]
            for entry in self.registry.audit.entries("bot", limit=1_000, action="rollout.step")
        }
        taken = {
            share.revision: rollout
            for rollout in self.registry.rollouts.all("bot").whole()
            for share in rollout.taken
            if not share.found
            and self.registry.routes.at("bot", share.revision).split[rollout.version] in {2_000, 5_000}
        }
        assert {revision: rollout.id for revision, rollout in taken.items() if revision in logged} == logged
        begun = [
            (entry.detail["rollout"], entry.detail["revision"])
            for action in ("declare", "resume")
            for entry in self.registry.audit.entries(limit=1_000, action=f"rollout.{action}")
        ]
        for revision, rollout in taken.items():
            if revision not in logged:
                continue
            known = [seen for owner, seen in begun if owner == rollout.id] + [s.revision for s in rollout.taken]
            stood_on = self.registry.routes.at("bot", max(seen for seen in known if seen < revision))
            before = self.registry.routes.at("bot", revision - 1)
            assert who_gets_what(before) == who_gets_what(stood_on), "somebody else's change was overwritten"

    def teardown(self) -> None:
        assert self.registry.audit.verify().faults == ()
        self.stack.close()


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 20), ("postgresql", 4)])
def test_rollouts_in_any_order(
    kind: str,
    examples: int,
    published_home: Path,
    empty_state: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    names = itertools.count()

    def opened(stack: ExitStack, clock: Clock) -> Registry:
        """The same versions, in an empty database."""
        sqlite = f"sqlite:///{shutil.copy(empty_state / 'tuneloop.db', tmp_path / f'{next(names)}.db')}"
        url = sqlite
        if kind == "postgresql":
            url = stack.enter_context(request.getfixturevalue("postgres").lent_database())
        mlflow = RegistrySettings(home=published_home).mlflow
        where = RegistrySettings(home=published_home, database_url=url, mlflow_uri=mlflow)
        return stack.enter_context(Registry.open(where, clock=clock))

    machine = type("AnyRollouts", (Rollouts,), {"open_registry": staticmethod(opened)})
    few = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(machine, settings=few)
