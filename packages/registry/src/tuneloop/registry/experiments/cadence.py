"""When the steps of a bandit that moves by itself are due; pure.

Since the start time is cut into spans of the declared length, each but the first with one step at most. A time that a
clock wrote which was ahead by more than a span tells nothing once the clock is right again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from tuneloop.registry.experiments.declaration import Experiment


def span(running: Experiment, now: datetime) -> datetime | None:
    """When the present span began; None: it is the first, or nothing steps by itself."""
    every = _every(running)
    if every is None or running.started_at is None or running.stopped_at is not None:
        return None
    number = (now - running.started_at) // every
    return running.started_at + number * every if number > 0 else None


def falls_in(running: Experiment, began: datetime, at: datetime | None, now: datetime) -> bool:
    """Whether something happened in a span that began then, also where the clock has since gone back a little."""
    every = _every(running)
    return every is not None and at is not None and began <= at <= now + every


def due_s(running: Experiment, now: datetime) -> float | None:
    """For how long a step has been due that nobody has seen to; None: nothing steps by itself."""
    every, began = _every(running), span(running, now)
    if every is None or running.started_at is None:
        return None
    if began is None or falls_in(running, began, running.looked_at, now):
        return 0.0
    last = running.started_at
    if running.looked_at is not None and last < running.looked_at < began:
        last += (running.looked_at - last) // every * every
    return (now - last - every).total_seconds()


def _every(running: Experiment) -> timedelta | None:
    every_s = running.declaration.step_every_s
    return None if every_s is None else timedelta(seconds=every_s)
