"""Whether a retraining run stays within its model's budgets. Pure: what was spent and what is wanted are arguments.

Days and months are those of UTC; a run counts for the day it started on. Above a day's budget a run waits until the day
is over. What no day would let through, what is above the month's money, and what cannot be known wait for a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from statistics import median

from tuneloop.registry.nouns import RetrainingRun
from tuneloop.registry.policies import RetrainingPolicy

_CENT = Decimal("0.01")


@dataclass(frozen=True)
class Estimate:
    """What a run will take, as far as it is known."""

    hours: float | None  # by the clock
    devices: int
    usd_per_hour: Decimal | None  # of all devices together
    basis: str  # where the figures come from, or why there are none


@dataclass(frozen=True)
class BudgetHold:
    """Why a run may not begin; `until` None: until a person approves it."""

    reason: str
    until: datetime | None


@dataclass(frozen=True)
class Spent:
    """What a model's runs of a day or a month took; those that still run count with what they were to take."""

    requests: frozenset[str]
    device_hours: float
    cost_usd: Decimal

    @classmethod
    def of(cls, runs: Sequence[RetrainingRun], since: datetime, now: datetime, usd_per_hour: Decimal | None) -> Spent:
        """Of the runs that started at `since` or later; one whose price was not known counts at today's."""
        mine = [(run, _hours(run, now)) for run in runs if run.started_at >= since]
        prices = [(hours, usd_per_hour if run.usd_per_hour is None else run.usd_per_hour) for run, hours in mine]
        return cls(
            frozenset(run.request_id for run, _ in mine),
            sum(run.devices * hours for run, hours in mine),
            sum((_exact(hours, price) or Decimal(0) for hours, price in prices), Decimal(0)),
        )


def cost_of(hours: float, usd_per_hour: Decimal | None) -> Decimal | None:
    """In whole cents, to be shown; None where the price is not known."""
    cost = _exact(hours, usd_per_hour)
    return None if cost is None else _cents(cost)


def _exact(hours: float, usd_per_hour: Decimal | None) -> Decimal | None:
    """To the last digit: rounded one by one, many short runs would be free."""
    return None if usd_per_hour is None else usd_per_hour * Decimal(repr(hours))


def _cents(cost: Decimal) -> Decimal:
    return cost.quantize(_CENT, ROUND_HALF_UP)


def day_of(now: datetime) -> datetime:
    """When the day began."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def month_of(now: datetime) -> datetime:
    """When the month began."""
    return day_of(now).replace(day=1)


def usual_hours(runs: Sequence[RetrainingRun]) -> float | None:
    """The median of what earlier runs took that came to a version; None without any."""
    done = [run.hours(run.ended_at) for run in runs if run.ended_at is not None and run.end in {"gated", "rejected"}]
    return median(done) if done else None


def hold(
    policy: RetrainingPolicy, wanted: Estimate, request_id: str, runs: Sequence[RetrainingRun], now: datetime
) -> BudgetHold | None:
    """Why the policy's budgets do not let a run begin now; None where they do.

    Args:
        policy: of the model.
        wanted: what the run will take.
        request_id: an earlier attempt of the same request is not counted as another run.
        runs: the model's, of this month at least.
        now: the time.
    """
    day = Spent.of(runs, day_of(now), now, wanted.usd_per_hour)
    month = Spent.of(runs, month_of(now), now, wanted.usd_per_hour)
    found = [_money(policy, wanted, month), *_day(policy, wanted, request_id, day, day_of(now) + timedelta(days=1))]
    held = [one for one in found if one is not None]
    return min(held, key=lambda one: one.until is not None, default=None)  # what needs a person is said first


def _day(
    policy: RetrainingPolicy, wanted: Estimate, request_id: str, day: Spent, over: datetime
) -> tuple[BudgetHold | None, BudgetHold | None]:
    others = len(day.requests - {request_id})
    most, hours = policy.runs_per_day, policy.device_hours_per_day
    runs = (
        BudgetHold(f"{others} of {most} runs a day began today", over) if most is not None and others >= most else None
    )
    if hours is None:
        return runs, None
    if wanted.hours is None:
        return runs, BudgetHold(f"device_hours_per_day is {hours:g}, and {wanted.basis}", None)
    takes = wanted.hours * wanted.devices
    if takes > hours:
        return runs, BudgetHold(
            f"it takes {takes:.3g} device hours ({wanted.basis}), a day's budget is {hours:g}", None
        )
    if day.device_hours + takes > hours:
        spent = f"{day.device_hours:.3g} of {hours:g} device hours a day are spent"
        return runs, BudgetHold(f"{spent}, it takes {takes:.3g} ({wanted.basis})", over)
    return runs, None


def _money(policy: RetrainingPolicy, wanted: Estimate, month: Spent) -> BudgetHold | None:
    most = policy.cost_usd_per_month
    if most is None:
        return None
    cost = None if wanted.hours is None else _exact(wanted.hours, wanted.usd_per_hour)
    if cost is None:
        return BudgetHold(f"cost_usd_per_month is {most}, and {wanted.basis}", None)
    if month.cost_usd + cost > most:
        spent = f"{_cents(month.cost_usd)} of {most} USD a month are spent"
        return BudgetHold(f"{spent}, it costs {_cents(cost)} ({wanted.basis})", None)
    return None


def _hours(run: RetrainingRun, now: datetime) -> float:
    return run.hours(now) if run.ended_at is not None else max(run.hours(now), run.planned_hours or 0.0)
