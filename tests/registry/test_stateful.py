"""Any order of operations: what the queue and the routes hold is what a plain model of them says, on both databases."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests_support import Clock, beat_engine, publish_version, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, Refused
from tuneloop.registry.nouns import FULL_SHARE_BP, RetrainingRequest, RetrainingState, Route, Shadow
from tuneloop.registry.retraining.queue import ENDED, MAX_ATTEMPTS, NEXT_STATES
from tuneloop.registry.rollouts.rollout import who_gets_what
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.routes.shadowing import shadow
from tuneloop.registry.settings import RegistrySettings

S = RetrainingState
LEASE_S = 20.0
picked = st.integers(min_value=0, max_value=1_000)  # of what there is at that moment, modulo how much


@dataclass
class Expected:
    """What the model knows of one request."""

    state: RetrainingState
    created_at: datetime
    updated_at: datetime
    token: int = 0
    attempts: int = 0
    owner: str | None = None
    until: datetime | None = None


class Queue(RuleBasedStateMachine):
    """The retraining queue, its workers and whoever approves, finishes late or not at all."""

    registry: Registry
    clock: Clock
    names: Iterator[int]

    def __init__(self) -> None:
        super().__init__()
        self.queue = self.registry.retraining
        self.example = next(self.names)
        self.keys: dict[int, str] = {}
        self.expected: dict[str, Expected] = {}
        self.claims: list[RetrainingRequest] = []  # also those that were lost meanwhile

    def moved(self, request_id: str, state: RetrainingState, **changes: object) -> None:
        known = self.expected[request_id]
        known.state, known.updated_at = state, self.clock.now
        for name, value in changes.items():
            setattr(known, name, value)

    def any_id(self, pick: int) -> str:
        return list(self.expected)[pick % len(self.expected)]

    @rule(key=st.integers(min_value=0, max_value=4))
    def file(self, key: int) -> None:
        self.clock.advance(1)
        made = self.queue.file(retraining_request(self.clock(), idempotency_key=f"{self.example}-{key}"), by="monitor")
        if key in self.keys:
            assert made.id == self.keys[key], "twice filed is one request"
        else:
            self.keys[key] = made.id
            self.expected[made.id] = Expected(S.PROPOSED, self.clock.now, self.clock.now)

    @precondition(lambda self: self.expected)
    @rule(pick=picked)
    def approve(self, pick: int) -> None:
        self.clock.advance(1)
        request_id = self.any_id(pick)
        self.allowed(
            lambda: self.queue.approve(request_id, by="ada", reason="r"),
            self.expected[request_id].state is S.PROPOSED,
            lambda: self.moved(request_id, S.QUEUED),
        )

    @precondition(lambda self: self.expected)
    @rule(pick=picked)
    def cancel(self, pick: int) -> None:
        self.clock.advance(1)
        request_id = self.any_id(pick)
        known = self.expected[request_id]
        self.allowed(
            lambda: self.queue.cancel(request_id, by="ada", reason="r"),
            known.state not in ENDED,
            lambda: self.moved(request_id, S.CANCELLED, token=known.token + 1, owner=None, until=None),
        )

    @precondition(lambda self: self.expected)
    @rule(pick=picked)
    def reject(self, pick: int) -> None:
        self.clock.advance(1)
        request_id = self.any_id(pick)
        self.allowed(
            lambda: self.queue.reject(request_id, by="ada", reason="r"),
            self.expected[request_id].state is S.PROPOSED,
            lambda: self.moved(request_id, S.REJECTED),
        )

    @precondition(lambda self: self.expected)
    @rule(pick=picked)
    def retry(self, pick: int) -> None:
        self.clock.advance(1)
        request_id = self.any_id(pick)
        known = self.expected[request_id]
        self.allowed(
            lambda: self.queue.retry(request_id, by="ada", reason="r"),
            known.state is S.FAILED,
            lambda: self.moved(request_id, S.QUEUED, token=known.token + 1, attempts=0),
        )

    @rule(worker=st.sampled_from(["w1", "w2", "w3"]))
    def claim(self, worker: str) -> None:
        self.clock.advance(1)
        claimed = self.queue.claim(worker, LEASE_S)
        waiting = [
            (known.updated_at, known.created_at, request_id)
            for request_id, known in self.expected.items()
            if known.state is S.QUEUED
            or (known.state is S.RUNNING and known.until is not None and known.until < self.clock.now)
        ]
        for _, _, request_id in sorted(waiting):
            known = self.expected[request_id]
            if known.attempts >= MAX_ATTEMPTS:
                self.moved(request_id, S.FAILED, token=known.token + 1, owner=None, until=None)
                continue
            until = self.clock.now + timedelta(seconds=LEASE_S)
            changes = {"token": known.token + 1, "attempts": known.attempts + 1, "owner": worker, "until": until}
            self.moved(request_id, S.RUNNING, **changes)
            assert claimed is not None
            assert claimed.id == request_id, "the one that waits longest"
            self.claims.append(claimed)
            return
        assert claimed is None

    @precondition(lambda self: self.claims)
    @rule(pick=picked)
    def renew(self, pick: int) -> None:
        self.clock.advance(1)
        claim = self.claims[pick % len(self.claims)]
        known = self.expected[claim.id]
        if known.token == claim.fencing_token and known.state is S.RUNNING:
            self.queue.renew(claim, LEASE_S)
            known.until = self.clock.now + timedelta(seconds=LEASE_S)
        else:
            with pytest.raises(Conflict):
                self.queue.renew(claim, LEASE_S)

    @precondition(lambda self: self.claims)
    @rule(pick=picked, state=st.sampled_from([S.GATED, S.REJECTED, S.FAILED]))
    def finish(self, pick: int, state: RetrainingState) -> None:
        self.clock.advance(1)
        claim = self.claims[pick % len(self.claims)]
        self.written(
            claim,
            state,
            lambda: self.queue.finish(claim, state, by="w", outcome="o"),
            lambda: self.moved(claim.id, state, owner=None, until=None),
        )

    @precondition(lambda self: self.claims)
    @rule(pick=picked)
    def put_back(self, pick: int) -> None:
        self.clock.advance(1)
        claim = self.claims[pick % len(self.claims)]
        known = self.expected[claim.id]
        changes = {"token": known.token + 1, "attempts": known.attempts - 1, "owner": None, "until": None}
        self.written(
            claim,
            S.QUEUED,
            lambda: self.queue.put_back(claim, by="w", reason="r"),
            lambda: self.moved(claim.id, S.QUEUED, **changes),
        )

    @rule(seconds=st.integers(min_value=1, max_value=30))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    def written(
        self, claim: RetrainingRequest, state: RetrainingState, act: Callable[[], object], then: Callable[[], None]
    ) -> None:
        """What the holder of a lease writes: refused with a stale token, or where the machine has no such step."""
        known = self.expected[claim.id]
        if known.token != claim.fencing_token:
            with pytest.raises(Conflict):
                act()
        else:
            self.allowed(act, state in NEXT_STATES[known.state], then)

    @staticmethod
    def allowed(act: Callable[[], object], allowed: bool, then: Callable[[], None]) -> None:
        if allowed:
            act()
            then()
        else:
            with pytest.raises(Refused):
                act()

    @invariant()
    def the_queue_is_what_the_model_says(self) -> None:
        for request_id, known in self.expected.items():
            found = self.queue.get(request_id)
            assert (found.state, found.fencing_token, found.attempts) == (known.state, known.token, known.attempts)
            assert (found.lease_owner, found.lease_until) == (known.owner, known.until)

    def teardown(self) -> None:
        assert self.registry.audit.verify().faults == ()
        for request_id, known in self.expected.items():
            if known.state not in ENDED:
                self.queue.cancel(request_id, by="test", reason="the next example begins")


def many(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def test_the_queue_in_any_order(registries: Registry, clock: Clock) -> None:
    machine = type("AnyQueue", (Queue,), {"registry": registries, "clock": clock, "names": itertools.count()})
    run_state_machine_as_test(machine, settings=many(25, 30))


def served(route: Route) -> dict[int, int]:
    """The versions that anybody gets, with their shares."""
    return {version: share for version, share in route.split.items() if share}


class Routes(RuleBasedStateMachine):
    """A model's route under people who set, promote, roll back, approve and revoke, with and without force."""

    open_registry: Callable[[ExitStack], Registry]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.registry = self.open_registry(self.stack)
        beat_engine(self.registry, *(f"bot@{number}" for number in range(1, 5)), max_loras=9)
        self.approved: set[int] = set()
        self.seen: list[Route] = []
        self.shadows: tuple[Shadow | None, ...] = ()  # what a revision may have been given, beside what stood

    version = st.integers(min_value=1, max_value=4)

    @rule(version=version)
    def approve(self, version: int) -> None:
        self.registry.gates.approve("bot", version, by="ada", reason="r")
        self.approved.add(version)

    @rule(version=version)
    def revoke(self, version: int) -> None:
        self.registry.gates.revoke("bot", version, by="ada", reason="r")
        self.approved.discard(version)

    @rule(version=version, force=st.booleans())
    def promote(self, version: int, force: bool) -> None:
        self.change(lambda who: promote(self.registry, "bot", version, who), force)

    @rule(versions=st.sets(version, min_size=1, max_size=3), cut=st.integers(0, FULL_SHARE_BP), force=st.booleans())
    def set(self, versions: set[int], cut: int, force: bool) -> None:
        first, *others = sorted(versions)
        shares = {first: FULL_SHARE_BP} if not others else {first: FULL_SHARE_BP - cut, others[0]: cut}
        shares |= dict.fromkeys(others[1:], 0)
        made = self.change(lambda who: set_route(self.registry, "bot", shares, who), force)
        if made is not None:
            assert made.split == shares

    @precondition(lambda self: self.seen)
    @rule(force=st.booleans())
    def roll_back(self, force: bool) -> None:
        before = self.seen[-1]
        made = self.change(lambda who: rollback(self.registry, "bot", who), force)
        if made is None:
            return
        if any(arm.weight_bp for arm in before.arms[:-1]):
            assert made.split == {arm.version: 0 for arm in before.arms[:-1]} | {before.champion: FULL_SHARE_BP}
        else:
            assert made.champion != before.champion
            assert made.champion in {route.champion for route in self.seen}

    @precondition(lambda self: self.seen)
    @rule(pick=picked, force=st.booleans())
    def roll_back_to(self, pick: int, force: bool) -> None:
        there = self.seen[pick % len(self.seen)]
        self.shadows = (there.shadow,)
        made = self.change(lambda who: rollback(self.registry, "bot", who, to_revision=there.revision), force)
        if made is not None:
            assert (made.arms, made.shadow) == (there.arms, there.shadow), "as they stood, the champion included"

    @precondition(lambda self: self.seen)
    @rule(version=version, share_bp=st.sampled_from([0, 500, FULL_SHARE_BP]))
    def shadow(self, version: int, share_bp: int) -> None:
        before, wanted = self.seen[-1], Shadow(version=version, share_bp=share_bp) if share_bp else None
        self.shadows = (wanted,)
        try:
            made = self.change(lambda who: shadow(self.registry, "bot", version, share_bp, who), force=False)
        except InvalidInput:
            self.shadows = ()
            ends_another = share_bp == 0 and (before.shadow is None or before.shadow.version != version)
            assert ends_another or before.split.get(version, 0) > 0
            return
        assert made is not None
        assert made.shadow == wanted
        assert who_gets_what(made) == who_gets_what(before), "it moves nobody"

    def change(self, act: Callable[[Change], Route], force: bool) -> Route | None:
        """The new revision; None where it was refused, which leaves who serves as it was."""
        before = self.seen[-1] if self.seen else None
        try:
            made = act(Change("ada", "r", force=force))
        except Refused:
            made = None
        for route in reversed(self.registry.routes.history("bot").whole()):
            if route.revision > len(self.seen):
                self.check(before, route, force)
                before = route
                self.seen.append(route)
        assert made is None or self.seen[-1] == made
        self.shadows = ()
        return made

    def check(self, before: Route | None, route: Route, force: bool) -> None:
        assert route.revision == len(self.seen) + 1
        gained = {
            arm.version
            for arm in route.arms
            if arm.weight_bp > 0 and (before is None or arm.version != before.champion)
        }
        if before is not None and served(route) == served(before):
            gained = set()  # a shadow, say, or who is staged: what was forced before stays as it is
        stood = before.shadow if before is not None else None
        kept = stood if stood is not None and route.split.get(stood.version) == 0 else None
        assert route.shadow in (kept, *self.shadows), "it stays while its version is an arm without a share"
        assert force or gained <= self.approved, "nothing unapproved serves the public unless forced"

    @invariant()
    def every_revision_is_on_record(self) -> None:
        entries = self.registry.audit.entries("bot", limit=1_000)
        assert [entry.detail["revision"] for entry in entries] == list(range(len(self.seen), 0, -1))
        assert self.registry.audit.verify().faults == ()

    def teardown(self) -> None:
        self.stack.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_routes_in_any_order(
    kind: str,
    registry: Registry,
    registry_home: Path,
    empty_state: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    for number in range(1, 5):
        publish_version(registry, tmp_path / f"v{number}")
    names = itertools.count()

    def opened(stack: ExitStack) -> Registry:
        """The same versions, in an empty database."""
        sqlite = f"sqlite:///{shutil.copy(empty_state / 'tuneloop.db', tmp_path / f'{next(names)}.db')}"
        url = sqlite
        if kind == "postgresql":
            url = stack.enter_context(request.getfixturevalue("postgres").lent_database())
        mlflow = RegistrySettings(home=registry_home).mlflow
        return stack.enter_context(
            Registry.open(RegistrySettings(home=registry_home, database_url=url, mlflow_uri=mlflow))
        )

    machine = type("AnyRoutes", (Routes,), {"open_registry": staticmethod(opened)})
    run_state_machine_as_test(machine, settings=many(8, 15))
