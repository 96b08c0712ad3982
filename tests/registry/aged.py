"""A registry with something old in it, and deletion by age that waits for nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tests_support import request_record
from tuneloop.registry import Registry
from tuneloop.registry.deliveries.receivers import EVERY_MODEL
from tuneloop.registry.nouns import Feedback
from tuneloop.registry.retention import ACTION, Retention
from tuneloop.registry.retention_policy import RetentionPolicy
from tuneloop.registry.tables import BLANK, feedback, requests, shadow_requests

DAY = timedelta(days=1)
MONTH = RetentionPolicy(text_days=30, record_days=90)


def keep(registry: Registry, policy: RetentionPolicy, model: str = EVERY_MODEL) -> None:
    registry.policies.set(model, policy, by="ada", reason="what the law asks for")


def said(request_id: str, at: datetime, **changes: Any) -> Feedback:
    fields = {"id": f"fb-{request_id}", "thumb": "down", "label": "ada asked", "comment": "of mine"}
    fields |= {"correction": "It adds."} | changes
    return Feedback(request_id=request_id, at=at, **fields)


def stored(registry: Registry, days: int, model: str = "bot") -> str:
    """A request of so many days ago that failed for a reason with a user's words in it, its copy, its feedback."""
    at, number = registry.clock() - days * DAY, days + (0 if model == "bot" else 1_000)
    asked = request_record(number, at, model=model, error="no such name: ada", status=400)
    copy = request_record(number + 10_000, at, model=model, shadow_of=asked.id)
    registry.traffic.add_requests([asked, copy])
    registry.traffic.add_feedback([said(asked.id, at)])
    return asked.id


def texts(registry: Registry) -> dict[str, set[str]]:
    """What is stored with its text, and what without, by table."""
    found: dict[str, set[str]] = {}
    with registry.database.reading() as connection:
        for table in (requests, shadow_requests):
            rows = connection.execute(sa.select(table)).all()
            found[table.name] = {row.id for row in rows if row.messages and row.answer}
            found[f"{table.name}, blank"] = {row.id for row in rows if not row.messages and row.answer is None}
        rows = connection.execute(sa.select(feedback)).all()
        found["feedback"] = {row.request_id for row in rows if row.comment and row.correction and row.label}
        bare = [row for row in rows if row.comment is None and row.label is None and row.correction == BLANK]
        found["feedback, blank"] = {row.request_id for row in bare}
    return found


def told(registry: Registry, subject: str = "bot") -> list[dict[str, int]]:
    """What passes took of a model, the first first."""
    return [entry.detail["taken"] for entry in reversed(registry.audit.entries(subject, action=ACTION))]


class Unhurried:
    """Lets a pass go on at once, and knows how long it was asked to wait; `over` is asked before each look."""

    def __init__(self, over: Callable[[], bool] = lambda: False) -> None:
        self.waits_s: list[float] = []
        self.is_set = over

    def wait(self, timeout: float, /) -> bool:
        self.waits_s.append(timeout)
        return False


def retain(
    registry: Registry, over: Callable[[], bool] = lambda: False, monotonic_s: Callable[[], float] = time.monotonic
) -> list[float]:
    """Delete by age, without pauses; returns how long these would have been, in seconds."""
    stop = Unhurried(over)
    Retention(registry, monotonic_s=monotonic_s).turn(stop)
    return stop.waits_s
