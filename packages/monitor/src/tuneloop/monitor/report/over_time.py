"""What records say span by span: how long answers took, how fast they came, what guards found. Pure.

All pictures of time share their spans, so that a moment stands at the same place in each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

import numpy as np

from tuneloop.monitor.guarded import PERSONAL_GUARDS
from tuneloop.monitor.report.figures import GuardsOverTime, HeatMap, Middle, SpeedOverTime
from tuneloop.monitor.signals import ATTACK_GUARDS
from tuneloop.registry.nouns import RequestRecord
from tuneloop.registry.statistics.intervals import wilson

SPANS = 48
ANSWERED = 200
_LEADS = (1, 2, 5)  # times powers of ten: where a heat map's rows begin
FOUND: dict[str, Callable[[RequestRecord], bool]] = {
    "stopped by a guard": lambda record: any(said.startswith("block: ") for said in record.guards.values()),
    "attack found": lambda record: any(guard in record.guards for guard in ATTACK_GUARDS),
    "personal data or secrets found": lambda record: any(guard in record.guards for guard in PERSONAL_GUARDS),
}


@dataclass(frozen=True)
class Spans:
    """Equal spans of time from the first record to the last."""

    first: datetime
    span_s: float
    n: int

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> Self:
        """Of records in order of time, of which there is one."""
        first, last = records[0].at, records[-1].at
        span_s = max((last - first).total_seconds() / SPANS, 1.0)
        return cls(first, span_s, min(SPANS, int((last - first).total_seconds() / span_s) + 1))

    @property
    def starts(self) -> tuple[datetime, ...]:
        """When each begins."""
        return tuple(self.first + timedelta(seconds=i * self.span_s) for i in range(self.n))

    def which(self, at: datetime) -> int:
        """The span that a moment is in."""
        return min(int((at - self.first).total_seconds() / self.span_s), self.n - 1)

    def dealt(self, records: Iterable[RequestRecord]) -> list[list[RequestRecord]]:
        """The records of each."""
        found: list[list[RequestRecord]] = [[] for _ in range(self.n)]
        for record in records:
            found[self.which(record.at)].append(record)
        return found


def heat_map(spans: Spans, records: Sequence[RequestRecord]) -> HeatMap | None:
    """How many answers of each span took how long; None without answers."""
    answered = [record for record in records if record.status == ANSWERED and record.total_ms > 0]
    if not answered:
        return None
    bounds = _bounds(min(r.total_ms for r in answered), max(r.total_ms for r in answered))
    counts = [[0] * (len(bounds) - 1) for _ in range(spans.n)]
    for record in answered:
        counts[spans.which(record.at)][min(bisect_right(bounds, record.total_ms), len(bounds) - 1) - 1] += 1
    return HeatMap(
        span_s=spans.span_s, starts=spans.starts, bounds_ms=tuple(bounds), answers=tuple(tuple(row) for row in counts)
    )


def speed(spans: Spans, records: Sequence[RequestRecord]) -> SpeedOverTime:
    """Tokens a second, the time between tokens of streams, and the time in the gateway's queue."""
    dealt = spans.dealt(records)
    return SpeedOverTime(
        span_s=spans.span_s,
        starts=spans.starts,
        requests_per_s=tuple(len(part) / spans.span_s for part in dealt),
        tokens_per_s=tuple(sum(r.completion_tokens or 0 for r in part) / spans.span_s for part in dealt),
        between_tokens_ms=tuple(
            _middle([ms for r in part if (ms := between_tokens_ms(r)) is not None]) for part in dealt
        ),
        queue_ms=tuple(_middle([r.queue_ms for r in part if r.queue_ms is not None]) for part in dealt),
    )


def between_tokens_ms(record: RequestRecord) -> float | None:
    """Mean time between the tokens of a streamed answer: what came after the first, over how many came after it."""
    if not record.stream or record.status != ANSWERED or record.ttft_ms is None or (record.completion_tokens or 0) < 2:
        return None
    assert record.completion_tokens is not None
    return max(record.total_ms - record.ttft_ms, 0.0) / (record.completion_tokens - 1)


def guards(spans: Spans, records: Sequence[RequestRecord]) -> GuardsOverTime | None:
    """In how many requests of each span guards found what; None where they found nothing in any."""
    found = {name: [0] * spans.n for name in FOUND}
    for record in records:
        for name, is_so in FOUND.items():
            found[name][spans.which(record.at)] += is_so(record)
    if not any(any(counts) for counts in found.values()):
        return None
    requests = [len(part) for part in spans.dealt(records)]
    return GuardsOverTime(
        span_s=spans.span_s,
        starts=spans.starts,
        requests=tuple(requests),
        found={name: tuple(counts) for name, counts in found.items()},
        shares={name: wilson(sum(counts), len(records)) for name, counts in found.items()},
    )


def _middle(values: Sequence[float]) -> Middle | None:
    if not values:
        return None
    p50, p95 = np.percentile(values, (50, 95))
    return Middle(n=len(values), p50=round(float(p50), 3), p95=round(float(p95), 3))


def _bounds(low: float, high: float) -> list[float]:
    """Round bounds, the first at most `low` and the last above `high`."""
    powers = range(int(np.floor(np.log10(low))) - 1, int(np.floor(np.log10(high))) + 3)
    round_ones = [lead * 10.0**power for power in powers for lead in _LEADS]
    return [
        *round_ones[bisect_right(round_ones, low) - 1 : bisect_right(round_ones, high)],
        round_ones[bisect_right(round_ones, high)],
    ]
