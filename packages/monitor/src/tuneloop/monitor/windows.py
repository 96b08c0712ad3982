"""Cutting a champion's traffic into windows: each record is judged once, in the order it came, also when it came
late.

A window takes the oldest records that no window and not the reference holds yet. It is closed once it is full, or once
MOST_ASKED times as many requests were answered or stopped by guards, which no window holds: an attack that is stopped
whole would else be judged when so many others were answered. Where windows have a longest time, it is closed too once
what was asked first is as old as that and it holds FEWEST_IN_A_WINDOW with what was stopped. A record that arrives late
(a gateway's spool was replayed) joins the next window; one later than `late_s` is left out, so that looking back stays
cheap. One that a gateway whose clock is ahead has stamped with a time to come is judged when that time has come: taken
at once it would put everything till then out of reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuneloop.monitor.reference import ANCHOR, JUST_BEFORE, Reference, champion_since
from tuneloop.monitor.settings import FEWEST_IN_A_WINDOW
from tuneloop.monitor.streams import last_scores
from tuneloop.registry import Registry
from tuneloop.registry.nouns import RequestRecord, Route, WindowScore

MOST_ASKED = 2
_LOOK_BACK = 64  # judged windows read back to know which records are taken


@dataclass(frozen=True)
class Window:
    """The k-th window of a champion's traffic after its reference."""

    index: int
    records: tuple[RequestRecord, ...]
    size: int  # records it was cut with; more than `records` once retention has taken some
    high_water: datetime  # the latest record any window or the reference held up to and with this one
    stopped: int = 0  # requests that guards stopped in its time
    asked: tuple[datetime, datetime] | None = None  # first and last time of all these; None: of its records

    @property
    def start(self) -> datetime:
        """When the first of what it holds was asked."""
        return self.asked[0] if self.asked else self.records[0].at

    @property
    def end(self) -> datetime:
        """When the last of it was."""
        return self.asked[1] if self.asked else self.records[-1].at

    @property
    def is_thin(self) -> bool:
        """Whether too little of what was asked was answered to judge answers, or questions, by."""
        return len(self.records) < FEWEST_IN_A_WINDOW


@dataclass(frozen=True)
class Progress:
    """How far a champion's traffic has been judged."""

    next_index: int
    taken: frozenset[str]  # ids of records that may not be judged again
    horizon: datetime  # records up to here are out of reach
    high_water: datetime


def progress(
    registry: Registry, history: Sequence[Route], version: int, reference: Reference, late_s: float
) -> Progress:
    """Where the next window begins, from the windows already judged."""
    model = history[0].model
    judged, now = last_scores(registry, model, version, ANCHOR, _LOOK_BACK), registry.clock()
    marks = [mark for mark in map(_high_water, judged) if mark <= now]
    of_reference = [record.at for record in reference.records if record.at <= now]
    high_water = max([*of_reference, *marks], default=champion_since(history))
    horizon = high_water - timedelta(seconds=late_s)
    if judged and judged[0].detail["window"] > 0:
        horizon = max([horizon, *marks[:1]])  # what older windows hold lies before their high water
    taken = set(reference.ids).union(*(score.request_ids for score in judged))
    return Progress(
        next_index=max((score.detail["window"] for score in judged), default=-1) + 1,
        taken=frozenset(taken),
        horizon=max(horizon, champion_since(history)),
        high_water=high_water,
    )


def next_window(
    registry: Registry, model: str, version: int, done: Progress, size: int, longest_s: float = 0.0
) -> Window | tuple[RequestRecord, ...]:
    """The next window that is closed, or the records that wait for that.

    Args:
        registry, model, version: whose. done: how far it has been judged.
        size: records a full window holds. longest_s: after how many seconds one is closed that is not full; 0: never.
    """
    limit, until = len(done.taken) + 4 * size, registry.clock()
    since = max(done.high_water, done.horizon)  # a champion that returns was not asked what the one before it was
    stopped = registry.traffic.stopped(model, since=since, until=until, oldest=MOST_ASKED * size)
    while True:
        served = registry.traffic.window(
            model, since=done.horizon, until=until, version=version, oldest=limit, asked=True
        )
        fresh = [record for record in served if record.id not in done.taken]
        if len(fresh) < size and len(served) + len(served.unreadable) >= limit:
            limit *= 2  # so many cannot be read
            continue
        end = _end([record.at for record in fresh], stopped, size, longest_s, until)
        if end is None:
            return tuple(fresh)
        records = tuple(record for record in fresh[:size] if record.at <= end)
        until_then = [at for at in stopped if at <= end]
        times = sorted([*(record.at for record in records), *until_then])
        asked = (times[0], times[-1]) if until_then else None
        high_water = max(done.high_water, end)
        return Window(done.next_index, records, len(records), high_water, len(until_then), asked)


def _end(
    answered: Sequence[datetime], stopped: Sequence[datetime], size: int, longest_s: float, now: datetime
) -> datetime | None:
    """When a window of requests of these times ends, the oldest first; None: it is not closed yet."""
    both = sorted([*answered, *stopped])
    full = [*answered[size - 1 : size], *both[MOST_ASKED * size - 1 : MOST_ASKED * size]]
    if full:
        return min(full)
    return both[-1] if is_closed_by_time(both, longest_s, now) else None


def is_closed_by_time(times: Sequence[datetime], longest_s: float, now: datetime) -> bool:
    """Whether requests of these times, the oldest first, are a window though it is not full; by 0 seconds none ever
    is."""
    enough = longest_s > 0 and len(times) >= FEWEST_IN_A_WINDOW
    return enough and times[0] + timedelta(seconds=longest_s) <= now


def judged_window(registry: Registry, anchor: WindowScore) -> Window:
    """The records of a window that was judged before, as far as they are still held with their text."""
    records = records_of(registry, [anchor])
    stopped, asked = anchor.detail.get("stopped", 0), (anchor.window_start, anchor.window_end)
    return Window(anchor.detail["window"], records, len(anchor.request_ids), _high_water(anchor), stopped, asked)


def records_of(registry: Registry, windows: Sequence[WindowScore]) -> tuple[RequestRecord, ...]:
    """The records of several judged windows of one version, in order of time, as far as they are still held with
    their text: one that is blank is like no question that was ever asked."""
    wanted = {request_id for score in windows for request_id in score.request_ids}
    since = min(score.window_start for score in windows) - JUST_BEFORE
    until = max(score.window_end for score in windows)
    held = registry.traffic.window(windows[0].model, since=since, until=until, version=windows[0].version)
    return tuple(record for record in held if record.id in wanted and record.question)


def _high_water(score: WindowScore) -> datetime:
    """Not after it was judged: earlier releases took records with a time to come."""
    return min(score.at, _said_high_water(score))


def _said_high_water(score: WindowScore) -> datetime:
    return datetime.fromisoformat(score.detail["high_water"])
