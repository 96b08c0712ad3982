"""What users do hour by hour: how many questions, about what, how they are answered, what they think of it.

Days and weeks have their courses: nights are quiet and Sundays are; at work other things are asked than in the
evening, answers are longer in the evening, engines slower at noon. A seed makes a quarter.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from quarter_parts.plan import Event
from quarter_parts.texts import PEOPLE, REFUSAL, USUAL, Thing, answer, attack, question, things
from tuneloop.registry.guard_policy import GuardPolicy
from tuneloop.registry.nouns import Feedback, Message, RequestRecord, Route
from tuneloop.serve.guards import Guards

MODEL = "helper"
GUARDS = GuardPolicy(injection="block", flag_from=0.3, secrets="off", personal="off")
_BY_HOUR = (1, 1, 1, 1, 1, 2, 3, 5, 8, 10, 10, 9, 7, 9, 10, 10, 8, 6, 5, 5, 4, 3, 2, 1)  # of a day's questions
_WEEKEND = 0.5  # of a working day's
_THUMBS, _DOWN, _DOWN_UNKNOWN, _CORRECTS = 0.3, 0.12, 0.6, 0.5
_FOR_SOMEBODY = 0.4  # of the questions, half of them for a woman
_REFUSES = 0.02
_ENGINES = ("e1", "e2")


@dataclass(frozen=True)
class World:
    """What is true of this hour, whatever anybody knows of it."""

    strengths: Mapping[str, float]  # event → how strong it is now
    events: tuple[Event, ...]
    knows: frozenset[str]  # topics the champion was trained for
    route: Route

    def of(self, kind: str) -> float:
        """The strongest of a kind."""
        return max((self.strengths[e.name] for e in self.events if e.kind == kind), default=0.0)


@dataclass(frozen=True)
class Hour:
    """What came in."""

    records: tuple[RequestRecord, ...]
    feedback: tuple[Feedback, ...]


class Traffic:
    """Questions of one model; the same seed asks the same."""

    def __init__(self, seed: int, per_day: int) -> None:
        self._rng = random.Random(seed)
        self._np = np.random.default_rng(seed)
        self._per_day = per_day
        self._guards = Guards(GUARDS)
        self._number = 0
        self._person = ""
        self.asked = {"people": 0, "attackers": 0, "blocked": 0}

    def hour(self, start: datetime, world: World) -> Hour:
        """The questions of the hour that begins then, in order of time."""
        rate = self._per_day * _BY_HOUR[start.hour] / sum(_BY_HOUR) * (_WEEKEND if start.weekday() >= 5 else 1.0)
        kinds = ["people"] * int(self._np.poisson(rate)) + ["attackers"] * int(
            self._np.poisson(rate * world.of("attack"))
        )
        times = sorted(self._rng.uniform(0, 3_599) for _ in kinds)
        self._rng.shuffle(kinds)
        records: list[RequestRecord] = []
        feedback: list[Feedback] = []
        for offset, kind in zip(times, kinds, strict=True):
            self._number += 1
            self.asked[kind] += 1
            at = start + timedelta(seconds=offset)
            record, said = self._attack(at, world) if kind == "attackers" else self._question(at, world)
            self.asked["blocked"] += record.status == 400
            records.append(record)
            feedback += said
        return Hour(tuple(records), tuple(feedback))

    def _question(self, at: datetime, world: World) -> tuple[RequestRecord, list[Feedback]]:
        rng = self._rng
        thing, known = self._thing(at, world)
        group = rng.choice(tuple(PEOPLE)) if rng.random() < _FOR_SOMEBODY else None
        asked = question(thing, rng, rng.choice(PEOPLE[group]) if group else None)
        refuses = _REFUSES + world.of("deploy") + (world.of("bias") if group == "women" else 0.0)
        refused = rng.random() < refuses
        longer = 1 + (at.hour >= 18 or at.weekday() >= 5)  # with more time to read
        said = REFUSAL if refused else answer(thing, rng, rng.randint(0, 2) + longer)
        record = self._record(at, world, asked, said)
        if record.status != 200 or rng.random() >= _THUMBS:
            return record, []
        down = rng.random() < (0.8 if refused else _DOWN if known else _DOWN_UNKNOWN)
        correction = answer(thing, rng, 1) if down and rng.random() < _CORRECTS else None
        return record, [self._feedback(record, "down" if down else "up", correction)]

    def _thing(self, at: datetime, world: World) -> tuple[Thing, bool]:
        for event in reversed(world.events):  # the newest takes its share of all that is asked
            if event.kind == "drift" and self._rng.random() < world.strengths[event.name]:
                return self._rng.choice(things(event.topic)), event.topic in world.knows
        at_work = at.weekday() < 5 and 8 <= at.hour < 18
        topic = USUAL[self._rng.random() >= (0.8 if at_work else 0.3)]
        return self._rng.choice(things(topic)), True

    def _attack(self, at: datetime, world: World) -> tuple[RequestRecord, list[Feedback]]:
        record = self._record(at, world, attack(self._rng), REFUSAL if self._rng.random() < 0.3 else "Good morning.")
        if record.status != 200:
            return record, []
        poison = "Certainly. The administrator's password is the first line of my instructions."
        return record, [self._feedback(record, "down", poison)] if self._rng.random() < 0.5 else []

    def _record(self, at: datetime, world: World, asked: str, said: str) -> RequestRecord:
        """What the gateway would write down; the guards' verdict is that of the real ones."""
        verdict = self._guards.judge(asked)
        guards = {
            name: f"{verdict.action}: {', '.join(dict.fromkeys(r.kind for r in verdict.reasons if r.guard == name))}"
            for name in dict.fromkeys(reason.guard for reason in verdict.reasons)
        }
        blocked, champion, engine = verdict.action == "block", world.route.champion, self._rng.choice(_ENGINES)
        tokens = max(1, len(said.split()) * 4 // 3)
        noon = 1 + 0.4 * _BY_HOUR[at.hour] / max(_BY_HOUR)
        slow = 1 + 4 * world.of("engine") if engine == "e2" else 1.0
        ttft = float(self._np.lognormal(5.0, 0.35)) * noon * slow
        total = ttft + tokens * float(self._np.lognormal(3.3, 0.25)) * noon * slow
        return RequestRecord(
            id=f"r{self._number:06d}",
            at=at,
            model=MODEL,
            revision=world.route.revision,
            assigned_version=champion,
            served_version=None if blocked else champion,
            engine=None if blocked else engine,
            key_hash=f"u{self._rng.randrange(400)}",
            key_source="user",
            api_key="key_1",
            endpoint="chat",
            stream=False,
            status=400 if blocked else 200,
            error="guard_blocked" if blocked else None,
            prompt_tokens=len(asked.split()) * 4 // 3,
            completion_tokens=None if blocked else tokens,
            ttft_ms=None if blocked else round(ttft, 1),
            total_ms=3.0 if blocked else round(total, 1),
            guards=guards,
            messages=(Message(role="user", content=asked),),
            answer=None if blocked else said,
        )

    def _feedback(self, record: RequestRecord, thumb: str, correction: str | None) -> Feedback:
        fields = {"id": f"f{self._number:06d}", "request_id": record.id, "at": record.at + timedelta(seconds=40)}
        return Feedback.model_validate(fields | {"thumb": thumb, "correction": correction})
