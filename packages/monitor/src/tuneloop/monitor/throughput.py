"""How fast answers come and how often they are asked for, as windows against the reference: tokens a second, time in
the queue, time between requests. Pure.

All are means of logarithms by permutation, so that one request that took a minute is one request. Requests that come in
bursts, or answers that are slow together, are no independent ones: such signals alarm more often than the budget says,
which is why they are watched only where somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from tuneloop.monitor import where
from tuneloop.monitor.comparison import ENOUGH_TEXT, Comparison, Judgement, examples_of
from tuneloop.monitor.detectors import mean_change_test, mean_rise_test
from tuneloop.monitor.reference import AN_HOUR, Reference
from tuneloop.monitor.signals import QUEUE_TIME, REQUEST_RATE, TOKENS_PER_S
from tuneloop.registry.nouns import RequestRecord

_HOUR = timedelta(hours=1)
_TICK_S = 1e-3  # times are kept to the millisecond
_UNITS = {TOKENS_PER_S: "tokens a second", QUEUE_TIME: "ms in the queue", REQUEST_RATE: "s between requests"}
Measured = list[tuple[RequestRecord, float]]


def tokens_per_s(record: RequestRecord) -> float | None:
    """Tokens of an answer over the seconds from when an engine was asked until it was whole."""
    busy_ms = record.total_ms - (record.queue_ms or 0.0)
    return 1_000 * record.completion_tokens / busy_ms if record.completion_tokens and busy_ms > 0 else None


def gaps(reference: Reference) -> Measured:
    """Seconds since the request before, of each record of a reference that has one; of a season's, of which each hour
    holds the first so many, the gaps behind those that are full are not known."""
    if reference.of is None or reference.since is None:
        return _apart(reference.records)
    since, chosen = reference.since, set(reference.ids)
    found, held, hour = [], 0, -1
    for before, record in pairwise(reference.of.records):
        of = (before.at - since) // _HOUR
        held, hour = (held + 1 if of == hour else 1), of
        cut = held >= AN_HOUR and (record.at - since) // _HOUR != hour
        if record.id in chosen and not cut:
            found.append((record, (record.at - before.at).total_seconds()))
    return found


def throughput(signal: str, held: Comparison, alpha: float, rng: np.random.Generator) -> Judgement:
    """Whether answers come slower, wait longer, or are asked for more or less often than in the reference."""
    before, now = _sides(signal, held)
    for what, side, of in (
        ("reference", before, held.reference.records),
        ("window", now, held.window.records),
    ):
        if len(side) < ENOUGH_TEXT * (len(of) - 1):
            reason = f"{len(of) - len(side)} of the {what}'s {len(of)} records do not tell their {_UNITS[signal]}"
            return Judgement("not enough data", len(now), None, {"reason": reason, "not_measured": True})
    worse = np.array([_cost(signal, value) for _, value in (*before, *now)])
    test = mean_change_test if signal == REQUEST_RATE else mean_rise_test
    result = test(worse[: len(before)], worse[len(before) :], alpha, rng)
    means = {"reference": worse[: len(before)].mean(), "window": worse[len(before) :].mean()}
    detail: dict[str, Any] = {
        "unit": f"difference of mean logs of {_UNITS[signal]}",
        "means": {what: float(f"{_value(signal, float(mean)):.6g}") for what, mean in means.items()},  # geometric
    }
    if result.alarm:
        records, costs = [record for record, _ in now], worse[len(before) :].tolist()
        detail["examples"] = examples_of(records, costs)
        if signal != REQUEST_RATE:  # of which a part is another rate and no part of a gap
            usual = [(record, _cost(signal, value)) for record, value in before]
            shown = [value for _, value in now]
            detail["slices"] = where.of_values(records, costs, rng, usual, unit=_UNITS[signal], shown=shown)
    return Judgement("drift" if result.alarm else "none", len(now), result, detail)


def _sides(signal: str, held: Comparison) -> tuple[Measured, Measured]:
    if signal == REQUEST_RATE:
        return gaps(held.reference), _apart(held.window.records)
    of: Callable[[RequestRecord], float | None] = tokens_per_s if signal == TOKENS_PER_S else lambda r: r.queue_ms
    return _measured(held.reference.records, of), _measured(held.window.records, of)


def _measured(records: Sequence[RequestRecord], of: Callable[[RequestRecord], float | None]) -> Measured:
    return [(record, value) for record in records if (value := of(record)) is not None]


def _apart(records: Sequence[RequestRecord]) -> Measured:
    return [(record, (record.at - before.at).total_seconds()) for before, record in pairwise(records)]


def _cost(signal: str, value: float) -> float:
    """More is worse."""
    if signal == TOKENS_PER_S:
        return -float(np.log(value))
    return float(np.log1p(max(value, 0.0)) if signal == QUEUE_TIME else np.log(max(value, 0.0) + _TICK_S))


def _value(signal: str, cost: float) -> float:
    """What costs so much."""
    if signal == TOKENS_PER_S:
        return float(np.exp(-cost))
    return float(np.expm1(cost) if signal == QUEUE_TIME else max(np.exp(cost) - _TICK_S, 0.0))
