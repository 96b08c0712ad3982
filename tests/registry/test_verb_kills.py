"""Whoever changes a route or an approval is killed with SIGKILL before each write there is: it is done, or it is not.

The version's route, its audit entry, the retraining that it answers and the approval are one; what MLflow says and what
was staged follow with the controller's next step. The engine loads what the route names, the gateway applies it.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.mortal import begun, die_before_write, ended
from registry.world import set_up
from tests_support import Clock, beat_engine, retraining_request
from tuneloop.registry import Registry, actions
from tuneloop.registry.aliases.accounting import Aliases
from tuneloop.registry.nouns import RetrainingState, version_name
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.settings import RegistrySettings

EVE, ADA = Change("eve", "knows better"), Change("ada", "as it was")
HOUR_S = 3_600


@dataclass(frozen=True)
class Verb:
    """What is done, from where, and what it makes of the route or of the approval of `bot@2`."""

    ready: Callable[[Registry], object]
    act: Callable[[Registry], object]
    split: dict[int, int] | None = None  # that the route has then
    request: RetrainingState = RetrainingState.GATED  # what the retraining that made it is then
    approver: tuple[str | None, str | None] = ("ada", "ada")  # who answers for the version, before and then


def alone(registry: Registry) -> None:
    set_route(registry, "bot", {1: 10_000}, ADA)


def approved(registry: Registry) -> None:
    registry.gates.approve("bot", 2, by="ada", reason="as it was")


VERBS = {
    "route set": Verb(
        ready=alone,
        act=lambda registry: set_route(registry, "bot", {2: 1_000, 1: 9_000}, EVE),
        split={2: 1_000, 1: 9_000},
    ),
    "promote": Verb(
        ready=alone,
        act=lambda registry: promote(registry, "bot", 2, EVE),
        split={1: 0, 2: 10_000},
        request=RetrainingState.SHIPPED,
    ),
    "rollback": Verb(
        ready=lambda registry: set_route(registry, "bot", {2: 1_000, 1: 9_000}, ADA),
        act=lambda registry: rollback(registry, "bot", EVE),
        split={2: 0, 1: 10_000},
        request=RetrainingState.REJECTED,
    ),
    "approve": Verb(
        ready=lambda registry: registry.gates.revoke("bot", 2, by="ada", reason="as it was"),
        act=lambda registry: actions.approve(registry, "bot", 2, by="eve", reason="knows better"),
        approver=(None, "eve"),
    ),
    "revoke": Verb(
        ready=approved,
        act=lambda registry: actions.revoke(registry, "bot", 2, by="eve", reason="knows better"),
        approver=("ada", None),
    ),
}


def act(settings: RegistrySettings, clock: Clock, verb: str, dies_before: int) -> None:
    """In a process of its own."""
    with Registry.open(settings, clock=clock, upgrade=False) as registry:
        die_before_write(dies_before)
        VERBS[verb].act(registry)


def follow(registry: Registry) -> None:
    """The engine holds what the route names, and says so."""
    beat_engine(registry, *(version_name("bot", arm.version) for arm in registry.routes.current("bot").arms))


def expect_whole(registry: Registry) -> None:
    """Every revision and every decision stands in the log, each once and in order, and nothing else does."""
    history = registry.routes.history("bot").whole()
    assert [route.revision for route in history] == list(range(len(history), 0, -1))
    entries = registry.audit.entries("bot", limit=10_000).whole()
    routed = [entry for entry in entries if entry.action.startswith(("route.", "version."))]
    assert [(e.detail["revision"], e.actor, e.detail["split"]) for e in routed] == [
        (route.revision, route.by, route.split_text) for route in history
    ]
    decided = registry.audit.entries("bot@2", limit=10_000).whole()
    assert [(entry.actor, entry.action == "version.approve") for entry in decided] == [
        (decision.by, decision.granted) for decision in registry.gates.decisions("bot", 2)
    ]
    assert registry.audit.verify().faults == ()


def is_done(registry: Registry, verb: Verb, revision: int, decisions: int, request: str) -> bool:
    """Whether all of it is done; that part of it was is refused."""
    decided = len(registry.gates.decisions("bot", 2)) - decisions
    routes = [route for route in registry.routes.history("bot") if route.revision > revision]
    written = [route for route in routes if not route.reason.startswith("stage for: ")]
    done = (decided if verb.split is None else len(written)) == 1
    assert (decided, [route.split for route in written]) == (
        int(done and verb.split is None),
        [verb.split] if done and verb.split is not None else [],
    )
    assert registry.gates.approver("bot", 2) == verb.approver[done]
    assert registry.retraining.get(request).state == (verb.request if done else RetrainingState.GATED)
    return done


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.mark.parametrize("name", VERBS)
def test_who_is_killed_before_any_write_has_done_all_or_nothing_and_the_controller_sees_to_what_follows(
    registries: Registry, clock: Clock, name: str
) -> None:
    set_up(registries)
    controller, verb, done = Controller(registries), VERBS[name], list[bool]()
    for number in itertools.count(1):
        for open_one in registries.retraining.all(open_only=True):
            registries.retraining.cancel(open_one.id, by="ada", reason="as it was")
        beat_engine(registries, "bot@1", "bot@2")
        verb.ready(registries)
        follow(registries)
        made = {"id": f"rt_kill{number}", "idempotency_key": str(number), "result_version": 2}
        request = registries.retraining.file(
            retraining_request(clock(), state=RetrainingState.GATED, **made), by="monitor"
        )
        before = registries.routes.current("bot")
        decisions = len(registries.gates.decisions("bot", 2))
        process = begun(act, registries.settings, clock, name, number)
        code = ended(process, lambda: follow(registries))
        assert code in {0, -signal.SIGKILL}
        expect_whole(registries)
        done.append(is_done(registries, verb, before.revision, decisions, request.id))

        clock.advance(HOUR_S)  # who is alive has gone on since
        follow(registries)
        controller.turn()
        route = registries.routes.current("bot")
        assert route.split == (verb.split if done[-1] and verb.split else before.split)
        assert Aliases.found(registries.versions.aliases("bot")) == Aliases.of(route)
        if code == 0:
            break
    expect_whole(registries)
    assert done == sorted(done), "once it is committed it stays"
    assert done[-1]
    assert done.count(False) >= 4, "row, entry, head and commit are writes: it was killed before each"
    assert registries.audit.entries("bot", action="alias.moved") == [], "nobody else has moved them"
