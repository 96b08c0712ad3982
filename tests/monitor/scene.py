"""A model under watch: its traffic, champion, clock and monitor, all real but the engine's language model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from monitor.engine import FakeEngine
from monitor.questions import NUMPY, STDLIB, ask
from tests_support import Clock, beat_engine, request_record
from tuneloop.monitor.canary_baseline import Baselines
from tuneloop.monitor.canary_stream import CanaryStream
from tuneloop.monitor.canary_watch import CanaryWatch
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.reading import engine_client
from tuneloop.monitor.scorer import Scorer
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.watch import ModelState, Monitor
from tuneloop.registry import Registry
from tuneloop.registry.nouns import AlertEpisode, Arm, Feedback, Message, RequestRecord, RetrainingRequest, WindowScore
from tuneloop.registry.settings import RegistrySettings

# Most tests count what the engine reads, so its canaries are left alone unless a test is about them.
SMALL = MonitorSettings(window=20, reference=60, mean_run_length=2_000, clear_after=2, canary_every_s=0)


class Killed(BaseException):
    """Nothing of the process goes on."""


def failing(fault: BaseException) -> Callable[..., Any]:
    """What fails in this way whenever it is called."""

    def fails(*_arguments: Any, **_named: Any) -> None:
        raise fault

    return fails


@contextmanager
def opened(home: Path, engine: FakeEngine) -> Iterator[Scene]:
    """A scene on a state folder of its own: `bot@1` is champion; nothing was asked yet."""
    clock = TickingClock()
    settings = RegistrySettings(home=home)
    with Registry.open(settings, clock=clock) as registry, engine_client(5) as client:
        made = Scene(registry, clock, engine, client)
        made.promote(1)
        yield made


class TickingClock(Clock):
    """A clock that moves a little every time it is read, as real ones do."""

    def __call__(self) -> Any:
        self.advance(0.001)
        return self.now


@dataclass
class Scene:
    """`bot` and everything around it; times move only when the scene says so."""

    registry: Registry
    clock: Clock
    engine: FakeEngine
    client: httpx.Client
    settings: MonitorSettings = SMALL
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    sent: int = 0
    baselines: Baselines | None = None  # those of the last monitor made; None: its canaries are left alone
    metrics: Metrics = field(default_factory=Metrics)  # likewise

    def promote(self, version: int, reason: str = "test") -> None:
        """Make a version the champion; the others keep a place at weight 0."""
        history = self.registry.routes.history("bot")
        known = {arm.version for arm in history[0].arms} if history else set()
        arms = [Arm(version=other, weight_bp=0) for other in sorted(known - {version})]
        self.registry.routes.write(
            "bot",
            [*arms, Arm(version=version, weight_bp=10_000)],
            by="ada",
            reason=reason,
            expected_revision=len(history),
        )
        self.clock.advance(1)

    def traffic(self, questions: Sequence[str], **changes: Any) -> list[RequestRecord]:
        """These questions, asked one a second."""
        records = []
        for question in questions:
            self.clock.advance(1)
            self.sent += 1
            fields = {"messages": (Message(role="user", content=question),)} | changes
            records.append(request_record(self.sent, self.clock.now, **fields))
        self.registry.traffic.add_requests(records)
        return records

    def usual(self, n: int, **changes: Any) -> list[RequestRecord]:
        """Questions about the standard library."""
        return self.traffic(ask(STDLIB, n, self.rng), **changes)

    def drifted(self, n: int, **changes: Any) -> list[RequestRecord]:
        """Questions about NumPy."""
        return self.traffic(ask(NUMPY, n, self.rng), **changes)

    def correct(self, records: Sequence[RequestRecord]) -> None:
        """Users say how these answers should have read."""
        items = [
            Feedback(
                id=f"fb-{r.id}", request_id=r.id, at=r.at + timedelta(seconds=1), thumb="down", correction="It adds."
            )
            for r in records
        ]
        self.registry.traffic.add_feedback(items)

    def watch(self, monitor: Monitor | None = None, *, serves: tuple[str, ...] = ("bot@1",)) -> ModelState:
        """One pass, of a fresh process unless one is given, while the engine serves these versions; then the round of
        baselines that runs beside it."""
        beat_engine(self.registry, *serves, url=self.engine.url, at=self.clock.now)
        (state,) = (monitor or self.monitor()).run_once()
        if self.baselines is not None:
            self.baselines.round()
        return state

    def monitor(self, **changes: Any) -> Monitor:
        """A monitor as a fresh process would have it."""
        settings = self.settings.model_copy(update=changes)
        scorer, metrics = Scorer(self.registry.fleet, self.client, concurrency=2, max_tokens=2_048), Metrics()
        self.metrics = metrics
        stream = CanaryStream(self.registry, settings, self.client, metrics, rng=random.Random(9))
        watched = settings.canary_every_s > 0
        self.baselines = Baselines(stream) if watched else None
        canaries = CanaryWatch(stream) if watched else None
        return Monitor(self.registry, settings, scorer, metrics, canaries=canaries)

    def scores(self, signal: str = "prompt_drift", version: int = 1) -> list[WindowScore]:
        """The judged windows of a stream."""
        return self.registry.episodes.scores("bot", version=version, signal=signal)

    def the_episode(self) -> AlertEpisode:
        """The only episode there is."""
        (episode,) = self.registry.episodes.all("bot")
        return episode

    def requests(self) -> list[RetrainingRequest]:
        """Everything that was filed."""
        return self.registry.retraining.all("bot")
