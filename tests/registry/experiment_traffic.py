"""An experiment's world for tests: versions in a route, users who ask and rate, all on a clock the test moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests_support import Clock, beat_engine, publish_version, request_record
from tuneloop.registry import Registry
from tuneloop.registry.experiments.declaration import Declaration, ExperimentPlan, read_declaration
from tuneloop.registry.nouns import Feedback, RequestRecord
from tuneloop.registry.routes.assignment import assign, key_hash, overridden
from tuneloop.registry.routes.promotion import Change, promote

CHANGE = Change("ada", "try it")
NO_PLAN = ExperimentPlan(days_seen=0.0, units_seen=0)
DECLARED = """\
model: bot
hypothesis: Version 2 gets fewer thumbs-down than version 1
arms: {1: 5000, 2: 5000}
primary:
  kind: binary
  measure: thumbs_down
  goal: lower
  minimum_effect: 0.1
guardrails:
  - {kind: mean, measure: total_ms, goal: lower, margin: 40}
  - {kind: ratio, measure: error, per: asked, goal: lower, margin: 0.1}
"""


@dataclass
class Users:
    """People who ask: each has a liking of their own, so their answers are not independent."""

    registry: Registry
    clock: Clock
    down: dict[int, float]  # version → how likely a thumb is down
    seed: int = 1
    span_s: float = 3_500  # over which they ask
    apart: float = 0.1  # how far one's liking is from another's, to either side
    lost: Callable[[RequestRecord], bool] = lambda _: False
    made: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def ask(self, users: Iterable[int], *, each: int = 2, **changes: Any) -> None:
        """These users ask so many times each, within the next hour, and rate every answer."""
        route, records, feedback = self.registry.routes.current("bot"), [], []
        for user in users:
            key = f"user-{user}"
            liking = random.Random(user).uniform(-self.apart, self.apart)
            given = overridden(route, key)
            version = assign(route, key) if given is None else given
            for _ in range(each):
                self.made += 1
                at = self.clock() + timedelta(seconds=self.random.uniform(0, self.span_s))
                fields = {
                    "id": f"{self.seed}-{self.made}",
                    "revision": route.revision,
                    "assigned_version": version if given is None else None,
                    "served_version": version,
                    "key_hash": key_hash(key),
                    "total_ms": self.random.lognormvariate(4.6, 0.4),
                    "prompt_tokens": self.random.randint(5, 50),
                }
                record = request_record(self.made, at, **(fields | changes))
                if self.lost(record):
                    continue
                records.append(record)
                thumb = "down" if self.random.random() < self.down[version] + liking else "up"
                feedback.append(
                    Feedback.model_validate({"id": f"f{record.id}", "request_id": record.id, "at": at, "thumb": thumb})
                )
        self.registry.traffic.add_requests(records)
        self.registry.traffic.add_feedback(feedback)
        self.clock.advance(3_600)


def bring_up(registry: Registry, folder: Path) -> None:
    """`bot@1` serves everything, `bot@2` waits; both are published, approved and on an engine."""
    for number in (1, 2):
        publish_version(registry, folder / f"v{number}")
        registry.gates.approve("bot", number, by="ada", reason="test")
    promote(registry, "bot", 1, CHANGE)
    beat_engine(registry, "bot@1", "bot@2")


def declared(folder: Path, text: str = DECLARED) -> Declaration:
    """A declaration, read from a file."""
    path = folder / "experiment.yaml"
    path.write_text(text)
    return read_declaration(path)
