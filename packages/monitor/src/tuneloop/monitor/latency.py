"""Latency against an objective: 95 % of answers are to begin and end in time. Pure.

A window is late when it holds more slow answers than the objective explains: exact binomial test, so a window of 40
that meets the objective alarms with probability at most alpha. Slow answers come in bursts; the false-alarm budget
holds only as far as answers are slow independently of each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tuneloop.monitor.detectors import Outcome
from tuneloop.registry.nouns import RequestRecord

SLOW_ALLOWED = 0.05  # the objective speaks of the 95th percentile
PERCENTILES = (50, 95, 99)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`p50`, `p95`, `p99` in the unit given; empty without values."""
    if not values:
        return {}
    return {f"p{p}": round(float(v), 3) for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}


def is_slow(record: RequestRecord, latency_ms: float, ttft_ms: float) -> bool:
    """Whether an answer ended or began later than its objective (0: no objective)."""
    late_end = latency_ms > 0 and record.total_ms > latency_ms
    return late_end or (ttft_ms > 0 and record.ttft_ms is not None and record.ttft_ms > ttft_ms)


def engines_of(records: Sequence[RequestRecord], slow: Sequence[RequestRecord]) -> dict[str, list[int]]:
    """By engine, as JSON: how many of its answers were slow, and how many there were."""
    late = Counter(record.engine for record in slow)
    return {name: [late[name], n] for name, n in Counter(r.engine for r in records).items() if name is not None}


def slow_share_test(slow: int, n: int, alpha: float) -> Outcome:
    """Whether `slow` of `n` is more than an objective of 95 % in time explains; statistic and threshold are shares."""
    from scipy.stats import binom  # noqa: PLC0415 (slow to import, and only needed with an objective)

    p_value = float(binom.sf(slow - 1, n, SLOW_ALLOWED))
    return Outcome(slow / n, float(binom.isf(alpha, n, SLOW_ALLOWED)) / n, p_value, alpha, 0)
