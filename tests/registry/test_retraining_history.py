"""History: what became of requests, what they took, and the share that shipped with its interval."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from registry.verbs import WHO, Verb
from tests_support import retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.nouns import RetrainingRun, RetrainingState
from tuneloop.registry.retraining.budgets import Estimate
from tuneloop.registry.retraining.history import history_of
from tuneloop.registry.statistics.intervals import wilson

NOW = datetime(2026, 11, 15, 18, tzinfo=UTC)
HOUR = timedelta(hours=1)
S = RetrainingState


def test_requests_and_their_runs_add_up() -> None:
    states = [S.SHIPPED, S.REJECTED, S.FAILED, S.EXPIRED, S.RUNNING]
    requests = [retraining_request(NOW - 9 * HOUR, id=f"rt_{n}", state=state) for n, state in enumerate(states)]

    def run(request: int, token: int, began_ago: float, took: float | None, price: str | None) -> RetrainingRun:
        began = NOW - began_ago * HOUR
        return RetrainingRun(
            request_id=f"rt_{request}",
            fencing_token=token,
            model="bot",
            worker="w",
            started_at=began,
            ended_at=None if took is None else began + took * HOUR,
            devices=2,
            planned_hours=float(token),
            usd_per_hour=None if price is None else Decimal(price),
        )

    runs = [run(0, 2, 5, 1, "1.50"), run(0, 1, 7, 0.5, "1.50"), run(1, 1, 3, 1, None), run(4, 1, 0.5, None, "2")]
    history = history_of(requests, runs, NOW)
    shipped, rejected, _, expired, running = history.requests
    assert (shipped.runs, shipped.hours, shipped.device_hours, shipped.cost_usd) == (2, 1.5, 3.0, Decimal("2.25"))
    assert (shipped.waited_s, shipped.planned_hours) == (2 * 3600, 2.0)
    assert (rejected.cost_usd, expired.waited_s, expired.runs) == (None, None, 0)
    assert (running.hours, running.cost_usd) == (0.5, Decimal("1.00"))
    assert history.ended == 4
    assert history.shipped == wilson(1, 4)
    assert history_of([requests[-1]], runs, NOW).shipped is None


def test_the_verbs_tell_what_was_held_retried_rejected_and_what_became_of_it(registry: Registry, verb: Verb) -> None:
    queue = registry.retraining
    now = registry.clock()
    for key in ("a", "b"):
        queue.file(retraining_request(now, id=f"rt_{key}", idempotency_key=key), by="monitor")
    assert verb("retraining", "reject", "rt_a", *WHO)[1] == "rt_a is rejected\n"
    assert verb("retraining", "reject", "rt_a", *WHO)[0] == 3
    assert verb("retraining", "retry", "rt_a", *WHO)[0] == 3
    queue.approve("rt_b", by="ada", reason="yes")
    claimed = queue.claim("w", lease_s=60)
    assert claimed is not None
    queue.begin(claimed, Estimate(0.5, 1, Decimal("2.00"), "the plan for this CPU, 4 steps"), by="w")
    queue.finish(claimed, S.FAILED, by="w", outcome="the disk is full")
    history = json.loads(verb("retraining", "history", "bot", "--json")[1])
    assert history["by_state"] == {"rejected": 1, "failed": 1}
    assert (history["ended"], history["shipped_share"]["estimate"]) == (2, 0.0)
    (failed,) = [one for one in history["requests"] if one["id"] == "rt_b"]
    assert (failed["runs"], failed["planned_hours"], failed["outcome"]) == (1, 0.5, "the disk is full")
    said = verb("retraining", "history")[1]
    assert "shipped: 0% of the 2 that have ended (95% interval 0% to 66%)" in said
    assert "the plan for this CPU, 4 steps" in verb("retraining", "show", "rt_b")[1]
    assert verb("retraining", "retry", "rt_b", *WHO)[1] == "rt_b is queued\n"
    assert verb("retraining", "history", "nobot")[0] == 2
