"""What became of retraining requests: outcomes, what they took and cost, and the share that shipped. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Self

from tuneloop.registry.nouns import Interval, Noun, RetrainingRequest, RetrainingRun, RetrainingState
from tuneloop.registry.retraining.budgets import cost_of
from tuneloop.registry.retraining.queue import ENDED
from tuneloop.registry.statistics.intervals import wilson


@dataclass(frozen=True)
class Took:
    """One request and what its runs took."""

    request: RetrainingRequest
    runs: int
    waited_s: float | None  # filed → first began to train
    hours: float  # by the clock, all its runs
    device_hours: float
    planned_hours: float | None  # of its newest run
    cost_usd: Decimal | None  # None: the price of some run is not known


class RequestTook(RetrainingRequest):
    """The same as one line."""

    runs: int
    waited_s: float | None
    hours: float
    device_hours: float
    planned_hours: float | None
    cost_usd: Decimal | None

    @classmethod
    def of(cls, took: Took) -> Self:
        """The request and the figures."""
        figures = {field.name: getattr(took, field.name) for field in fields(took) if field.name != "request"}
        return cls(**dict(took.request), **figures)


class Outcomes(Noun):
    """How many requests are in which state, and the share that shipped of those that have ended."""

    by_state: dict[RetrainingState, int]
    ended: int
    shipped_share: Interval | None  # None while nothing has ended


@dataclass(frozen=True)
class History:
    """Every request, the newest first, and the share that shipped of those that have ended."""

    requests: tuple[Took, ...]
    by_state: Mapping[RetrainingState, int]
    ended: int
    shipped: Interval | None  # None while nothing has ended


def history_of(requests: Sequence[RetrainingRequest], runs: Sequence[RetrainingRun], now: datetime) -> History:
    """Put requests and their runs together; a run that goes on counts up to `now`."""
    by_request: defaultdict[str, list[RetrainingRun]] = defaultdict(list)
    for run in runs:
        by_request[run.request_id].append(run)
    became = outcomes_of(Counter(request.state for request in requests))
    took = tuple(_took(request, by_request[request.id], now) for request in requests)
    return History(took, became.by_state, became.ended, became.shipped_share)


def outcomes_of(counts: Mapping[RetrainingState, int]) -> Outcomes:
    """What the numbers of requests in each state say."""
    ended = sum(counts.get(state, 0) for state in ENDED)
    return Outcomes(
        by_state={state: counts[state] for state in RetrainingState if counts.get(state)},
        ended=ended,
        shipped_share=wilson(counts.get(RetrainingState.SHIPPED, 0), ended) if ended else None,
    )


def _took(request: RetrainingRequest, runs: Sequence[RetrainingRun], now: datetime) -> Took:
    ordered = sorted(runs, key=lambda run: run.started_at)
    costs = [cost_of(run.hours(now), run.usd_per_hour) for run in ordered]
    known = [cost for cost in costs if cost is not None]
    return Took(
        request,
        len(ordered),
        (ordered[0].started_at - request.created_at).total_seconds() if ordered else None,
        sum(run.hours(now) for run in ordered),
        sum(run.devices * run.hours(now) for run in ordered),
        ordered[-1].planned_hours if ordered else None,
        sum(known, Decimal(0)) if len(known) == len(costs) else None,
    )
