"""The quarter itself: traffic, engines, the real monitor and its deliveries, on a clock that leaps from hour to hour.

Real are the registry (SQLite), the record store, the guards' verdicts, the monitor's passes, windows, tests, episodes,
causes, policy and filing, the outbox and the signed webhook. Simulated are users, attackers, engines (a word bigram in
the place of a language model), training (a version then knows what it was trained for) and the people on call.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from quarter_parts.engine import Bigram, Engine, served
from quarter_parts.people import People, Told
from quarter_parts.plan import START, Event, Plan
from quarter_parts.texts import USUAL, answer, question, things
from quarter_parts.traffic import GUARDS, MODEL, Traffic, World
from tuneloop.monitor.canary_baseline import Baselines
from tuneloop.monitor.canary_stream import CanaryStream
from tuneloop.monitor.canary_watch import CanaryWatch
from tuneloop.monitor.delivery.redacting import Redactor
from tuneloop.monitor.delivery.rounds import Deliverer
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.scorer import Scorer
from tuneloop.monitor.watch import Monitor
from tuneloop.registry import Registry
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy, Webhook
from tuneloop.registry.nouns import AdapterState, EngineState, RetrainingRequest
from tuneloop.registry.settings import RegistrySettings

_TRAINING_ROWS = 1_500  # of what a version knows, read by its bigram
HOUR = timedelta(hours=1)


class LeapingClock:
    """Stands where it was set, but for a millisecond at each look, as no two things happen at once."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@dataclass(frozen=True)
class Line:
    """Something that somebody did."""

    at: datetime
    text: str


@dataclass
class Quarter:
    """Everything that is going on; `run` makes it pass."""

    plan: Plan
    registry: Registry
    clock: LeapingClock
    engine: Engine
    url: str
    monitor: Monitor
    baselines: Baselines | None  # of canaries; a thread of the process has them, here each hour has a round
    deliverer: Deliverer
    traffic: Traffic
    lines: list[Line] = field(default_factory=list)
    knows: dict[int, frozenset[str]] = field(default_factory=dict)  # version → topics
    bad: dict[int, str] = field(default_factory=dict)  # version → the event that made it
    ended: dict[str, datetime] = field(default_factory=dict)  # event → when somebody ended it
    begun: set[str] = field(default_factory=set)
    answered: list[datetime] = field(default_factory=list)
    people: People = field(init=False)

    def __post_init__(self) -> None:
        self.people = People(self.registry, self.end, self.ship, self.say)
        self.add_version(frozenset(USUAL))

    def say(self, at: datetime, text: str) -> None:
        """Note what somebody did."""
        self.lines.append(Line(at, text))

    def add_version(self, topics: frozenset[str]) -> int:
        """A version that was trained on these topics."""
        version = len(self.knows) + 1
        rng = random.Random(f"{self.plan.seed} {version}")
        texts = []
        for _ in range(_TRAINING_ROWS):
            thing = rng.choice(things(rng.choice(sorted(topics))))
            texts.append(f"{question(thing, rng)} {answer(thing, rng, 1)}")
        self.engine.models[f"{MODEL}@{version}"] = Bigram(texts)
        self.knows[version] = topics
        return version

    def ship(self, request: RetrainingRequest) -> int:
        """A version that also knows what was asked in the request's data window."""
        asked = {
            event.topic
            for event in self.plan.events
            if event.kind == "drift" and event.at < request.window_end and event.strength_at(request.window_end) > 0
        }
        return self.add_version(self.knows[request.base_version] | asked)

    def end(self, cause: str) -> list[str]:
        """What somebody does about a cause, where it is what is going on; else it does not help."""
        does = {
            "engine": ("engine", "restarted engine e2"),
            "attack": ("attack", "withdrew the API key that the attempts came with"),
            "bias": ("bias", "took back what the model was told about its users"),
        }
        if cause not in does:
            return []
        kind, done = does[cause]
        for event in self._going_on(kind):
            self.ended[event.name] = self.clock.now
        return [done]

    def run(self) -> None:
        """Hour after hour."""
        self.people.promote(1, "the first version")
        for hour in range(self.plan.days * 24):
            self.one_hour(START + hour * HOUR)

    def one_hour(self, start: datetime) -> None:
        """What users do in it, then a pass of the monitor, a round of deliveries, and what people do."""
        self._begin(start)
        route = self.registry.routes.current(MODEL)
        strengths = {event.name: self._strength(event, start, route.champion) for event in self.plan.events}
        came = self.traffic.hour(start, World(strengths, self.plan.events, self.knows[route.champion], route))
        self.clock.now = max(self.clock.now, start + HOUR)
        self.registry.traffic.add_requests(came.records)
        self.registry.traffic.add_feedback(came.feedback)
        self.answered += [record.at for record in came.records if record.served_version is not None]
        self._beat()
        if self.baselines is not None:
            self.baselines.round()
        states = self.monitor.run_once()
        assert not any(state.failure for state in states), states
        self.deliverer.round(to_the_end=True)
        self.people.act(self.clock.now)
        self.deliverer.round(to_the_end=True)  # that somebody has acknowledged is told too

    def heard(self, _path: str, page: dict[str, Any]) -> dict[str, Any]:
        """The receiver: somebody is told."""
        self.people.hear(Told(self.clock.now, page))
        return {}

    def strength(self, event: Event, at: datetime) -> float:
        """How strong an event is at a time, ended or not, for who looks back."""
        if event.name in self.ended and at >= self.ended[event.name]:
            return 0.0
        return event.strength_at(at)

    def _strength(self, event: Event, at: datetime, champion: int) -> float:
        if event.kind == "deploy" and self.bad.get(champion) != event.name:
            if event.name in self.begun:
                self.ended.setdefault(event.name, at)
            return 0.0
        return self.strength(event, at)

    def _going_on(self, kind: str) -> list[Event]:
        return [e for e in self.plan.events if e.kind == kind and self.strength(e, self.clock.now) > 0]

    def _begin(self, start: datetime) -> None:
        for event in self.plan.events:
            if event.name in self.begun or event.at > start:
                continue
            self.begun.add(event.name)
            if event.kind == "deploy":
                champion = self.registry.routes.current(MODEL).champion
                version = self.add_version(self.knows[champion])
                self.bad[version] = event.name
                self.people.promote(version, "tuned by hand, looks fine to me", by="bob")

    def _beat(self) -> None:
        adapters = {f"{MODEL}@{version}": AdapterState.READY for version in self.knows}
        for name in ("e1", "e2"):
            state = EngineState(
                id=name, url=self.url, base="base", base_digest="sha256:base", template_digest="sha256:template",
                state="ready", adapters=adapters, max_loras=16, max_lora_rank=16, at=self.clock.now,
            )  # fmt: skip
            self.registry.fleet.beat_engine(state)


@contextmanager
def quarter_of(plan: Plan, home: Path, examples: int = 3) -> Iterator[Quarter]:
    """A quarter that has not begun, in a registry of its own under `home`."""
    clock, engine, metrics = LeapingClock(START), Engine(), Metrics()
    holder: list[Quarter] = []

    def heard(path: str, page: dict[str, Any]) -> dict[str, Any]:
        return holder[0].heard(path, page)

    (home / "key").write_text("the key both sides know")
    with (
        Registry.open(RegistrySettings(home=home), clock=clock) as registry,
        served(engine.answer) as url,
        served(heard) as hook,
        httpx.Client(timeout=30, trust_env=False) as client,
    ):
        settings = plan.settings
        scorer = Scorer(registry.fleet, client, concurrency=2, max_tokens=settings.scorer_max_tokens)
        watches = settings.canary_every_s > 0
        stream = CanaryStream(registry, settings, client, metrics, rng=random.Random(plan.seed))
        canaries, baselines = (CanaryWatch(stream), Baselines(stream)) if watches else (None, None)
        monitor = Monitor(registry, settings, scorer, metrics, canaries=canaries)
        rng = random.Random(plan.seed)
        deliverer = Deliverer(registry, settings, metrics, rng=rng, redact=Redactor())
        to = Webhook(kind="webhook", name="on-call", url=hook, secret_file=str(home / "key"), examples=examples)
        registry.policies.set(EVERY_MODEL, ReceiversPolicy(receivers=(to,)), by="ada", reason="the quarter begins")
        registry.policies.set(MODEL, plan.policy, by="ada", reason="the quarter begins")
        registry.policies.set(MODEL, GUARDS, by="ada", reason="the quarter begins")
        traffic = Traffic(plan.seed, plan.per_day)
        holder.append(Quarter(plan, registry, clock, engine, url, monitor, baselines, deliverer, traffic))
        try:
            yield holder[0]
        finally:
            deliverer.close()
