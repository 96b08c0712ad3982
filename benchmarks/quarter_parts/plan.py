"""What happens in the quarter, and by when each event has to be found. Written before anything was run.

Bounds are in answers of the champion since the event, because that is what the monitor's statistics count; windows
hold 40. An event in the midst of a window is diluted in that window, so the first window that is all of it ends up to
79 answers later, and an hour's pass adds some. Hence three windows (120) where one whole window shows the change almost
surely, six (240) where theory gives each window a chance of about one in two (1 - 0.5**5 = 97 %), and for what grows
slowly the same, counted from the day it is as large as that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from tuneloop.monitor.settings import MonitorSettings
from tuneloop.registry.policies import RetrainingPolicy

Kind = Literal["drift", "deploy", "engine", "attack", "bias"]
START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
SURE, HALF = 120, 240  # answers; see above
_HURT = 0.25  # of the questions, from which a slow drift is one that a window can show


@dataclass(frozen=True)
class Event:
    """Something that goes wrong; it lasts until somebody ends it, or for `days`."""

    name: str
    kind: Kind
    day: float  # since START
    says: str  # for the reader
    bound: int  # answers since it was `due_after_days` old
    why: str  # this bound
    days: float | None = None  # it ends by itself then; None: somebody has to end it
    ramp_days: float = 0.0  # until it is at its full strength
    strength: float = 1.0  # share of the questions, or of the group's answers
    due_after_days: float = 0.0
    topic: str = ""  # that a drift is about

    @property
    def at(self) -> datetime:
        """When it begins."""
        return START + timedelta(days=self.day)

    @property
    def due_from(self) -> datetime:
        """From when on its bound is counted."""
        return self.at + timedelta(days=self.due_after_days)

    def strength_at(self, now: datetime) -> float:
        """0 before it begins, then growing."""
        age = (now - self.at).total_seconds() / 86_400
        if age < 0 or (self.days is not None and age >= self.days):
            return 0.0
        return self.strength * min(1.0, age / self.ramp_days if self.ramp_days else 1.0)


@dataclass(frozen=True)
class Plan:
    """A simulated stretch of time."""

    days: int
    per_day: int  # questions on a working day
    events: tuple[Event, ...]
    settings: MonitorSettings
    policy: RetrainingPolicy
    seed: int = 20_260_105

    @property
    def end(self) -> datetime:
        """When it is over."""
        return START + timedelta(days=self.days)


_ONE_WINDOW = "a window that is all of it shows it almost surely"
EVENTS = (
    Event(
        "NumPy", "drift", 10 + 14 / 24, "a team moves to NumPy: half of all questions are about it from one hour to "
        "the next", SURE, _ONE_WINDOW, strength=0.5, topic="numpy",
    ),
    Event(
        "slow engine", "engine", 23 + 9 / 24, "engine e2 answers five times as slowly as e1", SURE,
        "a window then holds 20 of its answers, nearly all over the objective where 2 in 40 are allowed",
    ),
    Event(
        "bad version", "deploy", 27 + 10 / 24, "a version that somebody tuned by hand is promoted past its gate: it "
        "refuses every second question", SURE, _ONE_WINDOW, strength=0.5,
    ),
    Event(
        "SQLAlchemy", "drift", 31, "questions about SQLAlchemy grow from none to half of all within ten days", HALF,
        "from a quarter of the questions on (five days), each window shows it in more than one of two cases",
        ramp_days=10, strength=0.5, due_after_days=10 * _HURT / 0.5, topic="sqlalchemy",
    ),
    Event(
        "injections", "attack", 50 + 20 / 24, "somebody attacks with a script: as many attempts to turn the model "
        "against its rules as there are other questions, and false corrections of what gets through", SURE,
        _ONE_WINDOW, days=3, strength=1.0,
    ),
    Event(
        "scikit-learn", "drift", 56 + 8 / 24, "a new course: a quarter of all questions is about scikit-learn", HALF,
        "each window shows a quarter of another topic in more than one of two cases", strength=0.25, topic="sklearn",
    ),
    Event(
        "bias", "bias", 69, "what the model is told about its users grows one-sided: within two weeks it comes to "
        "refuse four of five questions that are asked for a woman", HALF,
        "at full strength one window in two holds enough refusals", ramp_days=14, strength=0.8, due_after_days=14,
    ),
)  # fmt: skip


def quarter() -> Plan:
    """Thirteen weeks of about 10,000 questions; the budget is one false alarm in as many."""
    settings = MonitorSettings(
        window=40, reference=120, season_days=7, mean_run_length=10_000, latency_ms=4_000, canary_every_s=6 * 3_600
    )
    policy = RetrainingPolicy(min_rows=20, cooldown_s=3 * 86_400.0)
    return Plan(days=91, per_day=140, events=EVENTS, settings=settings, policy=policy)


def quick() -> Plan:
    """Four weeks with a drift, an engine's fault and an attack."""
    by_name = {event.name: event for event in EVENTS}
    days = {"NumPy": 9 + 14 / 24, "slow engine": 22 + 9 / 24, "injections": 24 + 20 / 24}
    events = tuple(replace(by_name[name], day=day) for name, day in days.items())
    return replace(quarter(), days=28, events=events)


def days() -> Plan:
    """Four working days with an attack and a drift, in smaller windows: what a test has seconds for."""
    by_name = {event.name: event for event in EVENTS}
    begin = {"injections": 1 + 10 / 24, "NumPy": 2 + 9 / 24}
    events = tuple(replace(by_name[name], day=day) for name, day in begin.items())
    settings = MonitorSettings(
        window=20, reference=60, season_days=1, mean_run_length=2_000, latency_ms=4_000, canary_every_s=0
    )
    return Plan(days=4, per_day=140, events=events, settings=settings, policy=RetrainingPolicy(min_rows=5))
