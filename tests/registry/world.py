"""A small world around a rollout, on real stores: what an engine, a gateway and two hundred users do."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests_support import beat_engine, beat_gateway, publish_version, request_record, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Arm, Feedback, RetrainingState, Route, utc_now, version_name
from tuneloop.registry.routes.assignment import assign, held_out, key_hash
from tuneloop.registry.routes.promotion import Change, promote

KEYS = [f"user-{i}" for i in range(200)]
CHANGE = Change("ada", "answers the drift")


def publish(registry: Registry, folder: Path) -> None:
    """`bot@1` and `bot@2`, which the retraining request rt_1 made."""
    publish_version(registry, folder / "v1")
    publish_version(registry, folder / "v2", request_id="rt_1", parent=1)


def bot_route(revision: int, champion: int, challenger: int | None = None) -> Route:
    """A route of `bot`, ten in a hundred of it its challenger's, if it has one."""
    arms = [Arm(version=champion, weight_bp=10_000)]
    if challenger is not None:
        arms = [Arm(version=challenger, weight_bp=1_000), Arm(version=champion, weight_bp=9_000)]
    return Route(model="bot", revision=revision, arms=tuple(arms), salt="s", by="a", reason="r", at=utc_now())


def set_up(registry: Registry) -> None:
    """`bot@1` serves everything, `bot@2` is approved and waits for what becomes of it.

    The route's salt is given, so that the same of `KEYS` are in each arm whenever this runs.
    """
    registry.retraining.file(
        retraining_request(registry.clock(), id="rt_1", state=RetrainingState.GATED, result_version=2), by="monitor"
    )
    registry.gates.approve("bot", 1, by="ada", reason="test")
    registry.gates.approve("bot", 2, by="ada", reason="test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda size: "5eed" * (size // 2))
        promote(registry, "bot", 1, CHANGE)
    assert registry.routes.current("bot").salt == "5eed5eed5eed5eed"


def splits(registry: Registry) -> list[dict[int, int]]:
    """Every split there was, the first first."""
    return [route.split for route in reversed(registry.routes.history("bot"))]


@dataclass
class Users:
    """Users who ask and rate what answers them."""

    registry: Registry
    score: dict[int, float]  # version → what they think of its answers
    guards: dict[int, dict[str, str]] = field(default_factory=dict)  # version → what guards find in its answers
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def ask(self, route: Route, keys: list[str] = KEYS) -> None:
        """Everybody of `keys` asks once."""
        now, records, feedback = self.registry.clock(), [], []
        for key in keys:
            number, version, hashed = next(self.numbers), assign(route, key), key_hash(key)
            assigned = None if held_out(route, hashed) else version
            who = {"assigned_version": assigned, "served_version": version, "key_hash": hashed}
            found = self.guards.get(version, {})
            records.append(request_record(number, now, revision=route.revision, guards=found, **who))
            score = min(1.0, self.score[version] + 0.1 * (number % 2))
            feedback.append(Feedback(id=f"f{number}", request_id=f"req-{number}", at=now, score=score))
        self.registry.traffic.add_requests(records)
        self.registry.traffic.add_feedback(feedback)


class World(threading.Thread):
    """An engine that loads what the route names, a gateway that follows at once, users who rate every answer."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self.score: dict[int, float] = {}  # version → what users think of its answers; empty: nobody asks
        self.asks_below_bp = 10_001  # users ask while no challenger has this share
        self.beat_s = 0.05
        self._registry = registry
        self._users = Users(registry, self.score)
        self._closing = threading.Event()
        self._quarters = itertools.count()

    def run(self) -> None:
        while not self._closing.wait(self.beat_s):
            route = self._registry.routes.current("bot")
            beat_engine(self._registry, *(version_name("bot", arm.version) for arm in route.arms))
            beat_gateway(self._registry, {"bot": route.revision})
            if self.score and all(arm.weight_bp < self.asks_below_bp for arm in route.arms[:-1]):
                self._users.score = self.score
                self._users.ask(route, KEYS[next(self._quarters) % 4 :: 4])  # all of them, over four looks

    def close(self) -> None:
        self._closing.set()
        self.join()
