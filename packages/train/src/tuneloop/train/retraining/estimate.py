"""What a retraining will take: the training plan's hours on this machine, or what earlier runs of the model took.

Only real figures: what neither the plan nor an earlier run can say is not known, and said so. The plan's hours are
those of the training steps; loading, measuring and publishing come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.nouns import RetrainingRun
from tuneloop.registry.retraining.budgets import Estimate, usual_hours
from tuneloop.train.base import Base
from tuneloop.train.data.rows import Row
from tuneloop.train.plan.machine import gpu_name, machine_called
from tuneloop.train.plan.plan import Plan, make_plan
from tuneloop.train.plan.prices import TABLE, load_prices
from tuneloop.train.plan.rows import facts_of_rows
from tuneloop.train.plan.shapes import planned_base
from tuneloop.train.recipe import Recipe


@dataclass(frozen=True)
class Here:
    """What this machine is and costs."""

    threads: int
    has_gpu: bool
    prices: Path | None  # a table of the user's own
    usd_per_hour: Decimal | None  # of all that a run uses; None: what the table's cheapest offer on demand costs


def estimate(recipe: Recipe, base: Base, rows: Sequence[Row], earlier: Sequence[RetrainingRun], here: Here) -> Estimate:
    """What training these rows by the recipe's `retrain` section takes here.

    Args:
        recipe: of the retraining.
        base: made ready.
        rows: what will be learned.
        earlier: runs of the same model.
        here: this machine.
    """
    devices = recipe.run.launch.processes
    try:
        plan = _plan(recipe, base, rows, here)
    except TuneloopError as error:  # a device or a shape that the plan does not know is no reason not to train
        hours = usual_hours(earlier)
        said = "no earlier run has made a version" if hours is None else "the median of earlier runs counts"
        found = Estimate(
            hours, devices, here.usd_per_hour, f"the plan does not know what it takes ({error}), and {said}"
        )
    else:
        price = here.usd_per_hour if here.usd_per_hour is not None else _offered(plan)
        found = Estimate(plan.hours.estimate, devices, price, f"the plan for {plan.machine.name}, {plan.steps} steps")
    if found.usd_per_hour is None:
        return replace(found, basis=f"{found.basis}; an hour's price is not known: worker.usd_per_hour says it")
    return found


def _plan(recipe: Recipe, base: Base, rows: Sequence[Row], here: Here) -> Plan:
    table = load_prices(here.prices or TABLE)
    known = gpu_name(table)
    if here.has_gpu and known is None:
        table.device("this GPU")  # raises what the table has
    machine = machine_called(known or "this", table, None, here.threads)
    objective = recipe.objective
    shape = planned_base(str(base.folder.resolve()), base.folder.parent, relative_to=base.folder).shape
    facts = facts_of_rows(rows, "the retraining", base.folder, objective.max_length, objective.template)
    run = recipe.run.model_copy(update={"steps": recipe.retrain.steps, "epochs": None})
    return make_plan(recipe.model_copy(update={"run": run}), shape, facts, machine)


def _offered(plan: Plan) -> Decimal | None:
    """The cheapest offer on demand, an hour; a machine rented otherwise has `worker.usd_per_hour`."""
    hourly = [cost.offer.usd * cost.instances for cost in plan.costs if not cost.spot]
    return min(hourly, default=None)
