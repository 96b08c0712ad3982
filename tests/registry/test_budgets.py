"""Budgets of retraining runs: a run within them begins, one above them waits for the day's end or for a person."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests_support import Clock, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unreadable
from tuneloop.registry.nouns import RetrainingRequest, RetrainingRun
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.budgets import BudgetHold, Estimate, hold, usual_hours
from tuneloop.registry.tables import policies

NOW = datetime(2026, 11, 15, 18, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 16, tzinfo=UTC)
HOUR = timedelta(hours=1)
PLAN = Estimate(1.0, 2, Decimal("3.00"), "the plan")  # two device hours, three dollars
UNKNOWN = Estimate(None, 1, None, "the plan does not know")


def run(hours_ago: float, took: float | None, **changes: Any) -> RetrainingRun:
    began = NOW - hours_ago * HOUR
    fields: dict[str, Any] = {
        "request_id": f"rt_{hours_ago}",
        "fencing_token": 1,
        "model": "bot",
        "worker": "w1",
        "started_at": began,
        "ended_at": None if took is None else began + took * HOUR,
        "end": "" if took is None else "gated",
        "devices": 2,
        "planned_hours": 1.0,
        "usd_per_hour": Decimal("3.00"),
    }
    return RetrainingRun(**(fields | changes))


@pytest.mark.parametrize(
    ("budgets", "wanted", "runs", "held"),
    [
        ({}, UNKNOWN, [run(1, 9)], None),
        ({"runs_per_day": 2}, PLAN, [run(3, 1)], None),
        ({"runs_per_day": 2}, PLAN, [run(3, 1), run(2, 1)], MIDNIGHT),
        ({"runs_per_day": 2}, PLAN, [run(3, 1), run(19, 1)], None),  # yesterday's
        ({"runs_per_day": 1}, PLAN, [run(3, 1, request_id="mine")], None),  # an attempt before this one
        ({"device_hours_per_day": 4.0}, PLAN, [run(3, 1)], None),
        ({"device_hours_per_day": 3.9}, PLAN, [run(3, 1)], MIDNIGHT),
        ({"device_hours_per_day": 4.0}, PLAN, [run(0.5, None)], None),  # still runs: its plan counts
        ({"device_hours_per_day": 4.0}, PLAN, [run(1.5, None)], MIDNIGHT),  # longer than its plan: the clock counts
        ({"device_hours_per_day": 1.9}, PLAN, [], "person"),  # no day would let it through
        ({"device_hours_per_day": 9.0}, UNKNOWN, [], "person"),
        ({"cost_usd_per_month": Decimal("6.00")}, PLAN, [run(300, 1)], None),
        ({"cost_usd_per_month": Decimal("5.99")}, PLAN, [run(300, 1)], "person"),
        ({"cost_usd_per_month": Decimal("5.99")}, PLAN, [run(400, 1)], None),  # last month's
        ({"cost_usd_per_month": Decimal("5.99")}, PLAN, [run(300, 1, usd_per_hour=None)], "person"),
        ({"cost_usd_per_month": Decimal(9)}, Estimate(1.0, 1, None, "no price"), [], "person"),
        ({"cost_usd_per_month": Decimal(1), "runs_per_day": 1}, PLAN, [run(1, 1)], "person"),
    ],
)
def test_the_table_of_budgets(
    budgets: dict[str, Any], wanted: Estimate, runs: list[RetrainingRun], held: datetime | str | None
) -> None:
    found = hold(RetrainingPolicy(**budgets), wanted, "mine", runs, NOW)
    if held is None:
        assert found is None
    else:
        assert isinstance(found, BudgetHold)
        assert found.until == (None if held == "person" else held)


def test_the_reason_says_the_budget_what_is_spent_and_where_the_figures_come_from() -> None:
    policy = RetrainingPolicy(device_hours_per_day=3.0)
    held = hold(policy, PLAN, "mine", [run(3, 1)], NOW)
    assert held is not None
    assert held.reason == "2 of 3 device hours a day are spent, it takes 2 (the plan)"
    unknown = hold(policy, UNKNOWN, "mine", [], NOW)
    assert unknown is not None
    assert unknown.reason == "device_hours_per_day is 3, and the plan does not know"


def test_usual_hours_are_the_median_of_the_runs_that_made_a_version() -> None:
    runs = [run(9, 1), run(8, 3), run(7, 2), run(6, 99, end="failed"), run(5, 99, end="lost"), run(1, None)]
    assert usual_hours(runs) == pytest.approx(2.0)
    assert usual_hours(runs[3:]) is None


def claimed(registry: Registry, key: str) -> RetrainingRequest:
    request = registry.retraining.file(retraining_request(registry.clock(), idempotency_key=key), by="monitor")
    registry.retraining.approve(request.id, by="ada", reason="yes")
    found = registry.retraining.claim(f"w-{key}", lease_s=3600)
    assert found is not None
    assert found.id == request.id
    return found


def budget(registry: Registry, **budgets: Any) -> None:
    registry.policies.set("bot", RetrainingPolicy(**budgets), by="ada", reason="test")


def test_above_a_days_budget_a_request_waits_untried_until_the_day_is_over(registries: Registry, clock: Clock) -> None:
    budget(registries, runs_per_day=1)
    queue = registries.retraining
    first = queue.begin(claimed(registries, "a"), PLAN, by="w-a")
    assert first.state == "running"
    clock.advance(600)
    second = queue.begin(claimed(registries, "b"), PLAN, by="w-b")
    assert (second.state, second.attempts, second.held) == ("queued", 0, "1 of 1 runs a day began today")
    assert second.held_until == datetime(2026, 11, 2, tzinfo=UTC)
    assert (second.lease_owner, [r.request_id for r in queue.runs("bot")]) == (None, [first.id])
    assert queue.claim("w", lease_s=60) is None
    assert registries.audit.entries(second.id)[0].detail["note"] == second.held
    clock.now = datetime(2026, 11, 2, tzinfo=UTC)
    queue.finish(first, queue.get(first.id).state.GATED, by="w-a", outcome="pass")
    again = queue.claim("w", lease_s=60)
    assert again is not None
    assert (again.id, again.attempts, again.held, again.held_until) == (second.id, 1, "", None)
    assert queue.begin(again, PLAN, by="w").state == "running"


def test_above_the_months_money_a_person_decides_and_an_approval_goes_beyond_it(
    registries: Registry, clock: Clock
) -> None:
    budget(registries, cost_usd_per_month=Decimal("2.50"))
    queue = registries.retraining
    back = queue.begin(claimed(registries, "a"), PLAN, by="w-a")
    assert (back.state, back.attempts, back.held_until) == ("proposed", 0, None)
    assert back.held == "0.00 of 2.50 USD a month are spent, it costs 3.00 (the plan)"
    assert queue.claim("w", lease_s=60) is None
    approved = queue.approve(back.id, by="grace", reason="worth it")
    assert (approved.state, approved.held, approved.budget_waived_by) == ("queued", "", "grace")
    again = queue.claim("w", lease_s=60)
    assert again is not None
    assert queue.begin(again, PLAN, by="w").state == "running"
    clock.advance(1800)
    queue.finish(again, again.state.REJECTED, by="w", outcome="worse", result_version=2)
    (ran,) = queue.runs("bot")
    assert (ran.hours(clock()), ran.end, ran.usd_per_hour) == (0.5, "rejected", Decimal("3.00"))
    assert [e.action for e in registries.audit.entries(back.id)][:2] == ["retraining.rejected", "retraining.begin"]


def test_a_dead_workers_run_counts_until_its_lease_ran_out(registries: Registry, clock: Clock) -> None:
    queue = registries.retraining
    dead = queue.begin(claimed(registries, "a"), PLAN, by="w-a")
    clock.advance(1800)
    queue.renew(dead, lease_s=60)
    clock.advance(7200)
    second = queue.claim("w2", lease_s=60)
    assert second is not None
    queue.begin(second, PLAN, by="w2")
    newest, lost = queue.runs(request_id=dead.id)
    assert (lost.end, lost.hours(clock())) == ("lost", 1860 / 3600)
    assert (newest.worker, newest.ended_at) == ("w2", None)


def test_of_many_that_begin_at_once_as_many_as_the_budget_holds_do(registries: Registry) -> None:
    budget(registries, runs_per_day=3)
    waiting = [claimed(registries, f"k{number}") for number in range(8)]
    ready = threading.Barrier(len(waiting))
    states: list[str] = []

    def begin(request: RetrainingRequest) -> None:
        ready.wait()
        states.append(registries.retraining.begin(request, PLAN, by="w").state)

    threads = [threading.Thread(target=begin, args=(request,)) for request in waiting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == ["queued"] * 5 + ["running"] * 3


@pytest.mark.parametrize("end", ["cancel", "put_back"])
def test_a_run_that_is_stopped_ends_then(registry: Registry, end: str) -> None:
    begun = registry.retraining.begin(claimed(registry, "a"), PLAN, by="w-a")
    acts: dict[str, Callable[[], object]] = {
        "cancel": lambda: registry.retraining.cancel(begun.id, by="ada", reason="r"),
        "put_back": lambda: registry.retraining.put_back(begun, by="w-a", reason="r"),
    }
    acts[end]()
    (ran,) = registry.retraining.runs("bot")
    assert ran.ended_at is not None
    assert ran.end == {"cancel": "cancelled", "put_back": "queued"}[end]


def test_a_policy_that_cannot_be_read_lets_nothing_begin_and_nothing_expire(registry: Registry, clock: Clock) -> None:
    waiting = claimed(registry, "a")
    undecided = registry.retraining.file(
        retraining_request(clock() - timedelta(days=99), idempotency_key="b"), by="monitor"
    )
    budget(registry)
    with registry.database.writing() as connection:
        connection.execute(policies.update().values(body={"expires_s": "soon"}))
    with pytest.raises(Unreadable, match="retraining policy of bot"):
        registry.retraining.begin(waiting, PLAN, by="w")
    registry.retraining.expire(by="monitor")
    assert registry.retraining.get(undecided.id).state == "proposed"


def test_what_has_ended_is_held_by_nothing_and_says_how_it_ended(registries: Registry) -> None:
    queue = registries.retraining
    registries.policies.set("bot", RetrainingPolicy(device_hours_per_day=0.5), by="ada", reason="r")
    for key, end in (("a", queue.cancel), ("b", queue.reject)):
        request = queue.begin(claimed(registries, key), PLAN, by="w")
        assert "device_hours_per_day" in request.held or "device hours" in request.held
        ended = end(request.id, by="ada", reason="not now")
        assert (ended.held, ended.held_until, ended.outcome) == ("", None, "not now")


def test_many_short_runs_add_up_to_what_they_cost(registries: Registry) -> None:
    runs = [run(1, 0.004, request_id=f"rt_{n}", usd_per_hour=Decimal(1)) for n in range(2_000)]
    held = hold(RetrainingPolicy(cost_usd_per_month=Decimal(5)), PLAN, "mine", runs, NOW)
    assert held is not None
    assert held.reason == "8.00 of 5 USD a month are spent, it costs 3.00 (the plan)"
