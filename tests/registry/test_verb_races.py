"""Eight processes change one model's route and approvals at once: each revision has one winner, who loses is told."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from registry.mortal import begun, ended, forking
from registry.world import CHANGE, set_up
from tests_support import Clock
from tuneloop.registry import Registry, actions
from tuneloop.registry.aliases.accounting import Aliases
from tuneloop.registry.errors import Conflict, Refused
from tuneloop.registry.nouns import Route
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.settings import RegistrySettings

PROCESSES, EACH = 8, 15
TOGETHER = 3  # turns in which all have looked before anybody writes: so they meet on any machine
DECISIONS = ("approve", "revoke")
VERBS = (*["set"] * 4, *["promote"] * 3, *["rollback"] * 2, *["approve"] * 3, "revoke")  # revoked: nobody gets more
CHANGING = tuple(verb for verb in VERBS if verb not in DECISIONS)  # in the turns together: of these one alone wins
DECIDED = frozenset({"version.approve", "version.revoke"})


@dataclass(frozen=True)
class Attempt:
    """What a process tried, and what came of it."""

    by: str
    reason: str
    verb: str
    expected: int  # the revision that it saw
    wrote: int | None  # the revision that it wrote
    told: str  # why it did not


@contextmanager
def aborting(start: Barrier) -> Iterator[None]:
    """Whoever fails keeps nobody waiting."""
    try:
        yield
    except BaseException:
        start.abort()
        raise


def race(settings: RegistrySettings, clock: Clock, name: str, seed: int, start: Barrier, said: str) -> None:
    """In a process of its own: one change after the other, each of the newest revision, and what came of each."""
    dice, attempts = random.Random(seed), list[Attempt]()
    with Registry.open(settings, clock=clock, upgrade=False) as registry:
        registry.versions.get("bot", 1)  # MLflow is connected
        start.wait(300)
        with aborting(start):
            for turn in range(EACH):
                seen = registry.routes.current("bot")
                if turn < TOGETHER:
                    start.wait(300)
                verb = dice.choice(CHANGING if turn < TOGETHER else VERBS)
                change = Change(name, f"turn {turn} of {name}")
                wrote, told = None, ""
                try:
                    wrote = _do(registry, verb, dice.randint(1, 9) * 1_000, dice.choice((1, 2)), change, seen)
                except (Conflict, Refused) as error:
                    told = f"{type(error).__name__}: {error}"
                attempts.append(Attempt(name, change.reason, verb, seen.revision, wrote, told))
    Path(said).write_text(json.dumps([vars(attempt) for attempt in attempts]), encoding="utf-8")


def _do(registry: Registry, verb: str, share_bp: int, version: int, change: Change, seen: Route) -> int | None:
    """The number of the revision that it wrote; None: it wrote none."""
    asked: dict[str, Any] = {"expected_revision": seen.revision}
    match verb:
        case "set":
            route = set_route(registry, "bot", {2: share_bp, 1: 10_000 - share_bp}, change, **asked)
        case "promote":
            route = promote(registry, "bot", version, change, **asked)
        case "rollback":
            route = rollback(registry, "bot", change, **asked)
        case _:
            decide: Callable[..., object] = actions.approve if verb == "approve" else actions.revoke
            decide(registry, "bot", version, by=change.by, reason=change.reason)
            return None
    return None if route.revision == seen.revision else route.revision


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


def test_of_processes_that_change_one_route_at_once_one_wins_each_revision_and_the_others_are_told_who(
    registries: Registry, clock: Clock, tmp_path: Path
) -> None:
    set_up(registries)
    set_route(registries, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    start, said = forking().Barrier(PROCESSES), [tmp_path / f"said-{number}" for number in range(PROCESSES)]
    processes = [
        begun(race, registries.settings, clock, f"p{number}", number, start, str(said[number]))
        for number in range(PROCESSES)
    ]
    assert [ended(process) for process in processes] == [0] * PROCESSES
    attempts = [Attempt(**one) for file in said for one in json.loads(file.read_text(encoding="utf-8"))]
    assert len(attempts) == PROCESSES * EACH

    history = {route.revision: route for route in registries.routes.history("bot", limit=1_000_000).whole()}
    assert sorted(history) == list(range(1, len(history) + 1)), "no revision is missing"
    wrote = {attempt.wrote: attempt for attempt in attempts if attempt.wrote is not None}
    assert wrote.keys() == set(range(3, len(history) + 1)), "each is somebody's, who was told so"
    assert len(wrote) == sum(attempt.wrote is not None for attempt in attempts), "and nobody else's"
    for revision, attempt in wrote.items():
        route = history[revision]
        assert (attempt.expected, attempt.by, attempt.reason) == (revision - 1, route.by, route.reason)

    lost = [attempt for attempt in attempts if attempt.told.startswith("Conflict: ")]
    for attempt in lost:
        winner = history[attempt.expected + 1]
        who = f"you saw revision {attempt.expected}, but {winner.by} wrote revision {winner.revision} "
        assert who in attempt.told
        assert f"({winner.split_text}) at {winner.at:%H:%M:%S} because {winner.reason!r}" in attempt.told
    assert len(lost) >= PROCESSES, "they met"

    entries = [*reversed(registries.audit.entries(limit=1_000_000).whole())]
    written = [entry for entry in entries if "revision" in entry.detail]
    assert [(e.detail["revision"], e.actor, e.detail["reason"], e.detail["split"]) for e in written] == [
        (revision, route.by, route.reason, route.split_text) for revision, route in sorted(history.items())
    ], "each winner has its entry, and nobody else has one"
    decided = Counter(
        (e.actor, e.detail["reason"]) for e in entries if e.action in {"version.approve", "version.revoke"}
    )
    assert decided == Counter((a.by, a.reason) for a in attempts if a.verb in DECISIONS) + Counter({("ada", "test"): 2})
    assert registries.audit.verify().faults == ()
    expect_approved(registries, history)

    Controller(registries).turn()
    route = registries.routes.current("bot")
    assert route == history[len(history)], "nobody but they has changed it"
    assert Aliases.found(registries.versions.aliases("bot")) == Aliases.of(route)
    assert registries.audit.entries("bot", action="alias.moved") == []


def expect_approved(registry: Registry, history: dict[int, Route]) -> None:
    """Nobody got more than they had, unless they had become the champion, without an approval that stood then."""
    approved: dict[str, bool] = {}
    for entry in reversed(registry.audit.entries(limit=1_000_000).whole()):
        if entry.action in DECIDED:
            approved[entry.subject] = entry.action == "version.approve"
        elif "revision" in entry.detail:
            now, before = history[entry.detail["revision"]], history.get(entry.detail["revision"] - 1)
            for arm in now.arms:
                had_bp = before.split.get(arm.version, 0) if before else 0
                if arm.weight_bp > had_bp and (before is None or before.champion != arm.version):
                    assert approved[f"bot@{arm.version}"], f"revision {now.revision}: {now.split_text}"
