"""What would make a run cheaper: each change is planned for itself; those that help are ranked by what they save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tuneloop.train.plan.memory import GIB
from tuneloop.train.plan.plan import Machine, Plan, make_plan
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.combinations import refusals
from tuneloop.train.recipe.run import AUTO
from tuneloop.train.recipe.tuning import FullTuning, LoraTuning, QloraTuning

_WORTH = 0.03  # a smaller saving is not worth a change


@dataclass(frozen=True)
class Advice:
    """One change, and what it does."""

    change: str
    memory_gib: float  # difference of the estimate; negative is less
    time_share: float  # difference, as a share of the planned time
    usd: str | None  # difference of the cheapest offer
    fits: str  # then: yes, perhaps or no
    price: str  # what it costs in other ways

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def advise(plan: Plan, others: tuple[Machine, ...] = ()) -> list[Advice]:
    """The changes that save memory where it lacks, otherwise time or money; the best first."""
    short = plan.fits != "yes"
    found = []
    for change, recipe, machine, price in [*_changes(plan), *_machines(plan, others)]:
        if refusals(recipe):  # of what the planned recipe is, others of its kind are not built
            continue
        changed = make_plan(recipe, plan.shape, plan.rows, machine)
        if changed.fits == "no" and not short:
            continue
        advice = Advice(
            change,
            round((changed.memory.total - plan.memory.total) / GIB, 3),
            round(changed.step.estimate * changed.steps / (plan.step.estimate * plan.steps) - 1, 3),
            str(changed.costs[0].usd - plan.costs[0].usd) if changed.costs and plan.costs else None,
            changed.fits,
            price,
        )
        helps = (
            changed.memory.total < plan.memory.total * (1 - _WORTH) or changed.fits == "yes"
            if short
            else _saving(plan, changed) > _WORTH
        )
        if helps:
            found.append((_rank(plan, changed, short), advice))
    return [advice for _, advice in sorted(found, key=lambda pair: pair[0])]


def _saving(plan: Plan, changed: Plan) -> float:
    """Of money where there are prices, of time otherwise, as a share."""
    if plan.costs and changed.costs:
        return 1 - _unrounded_usd(changed) / _unrounded_usd(plan)
    return 1 - changed.hours.estimate / plan.hours.estimate


def _unrounded_usd(plan: Plan) -> float:
    """Of the cheapest offer: cents would hide what helps a short run."""
    hourly = (c.instances * float(c.offer.hourly_usd(spot=c.spot) or 0) for c in plan.costs)
    return min(hourly) * plan.hours.estimate


def _rank(plan: Plan, changed: Plan, short: bool) -> tuple[float, float]:
    memory = changed.memory.total / plan.memory.total
    return (memory, -_saving(plan, changed)) if short else (-_saving(plan, changed), memory)


def _changes(plan: Plan) -> Iterator[tuple[str, Recipe, Machine, str]]:
    recipe, machine = plan.recipe, plan.machine
    run, tuning = recipe.run, recipe.tuning

    def with_run(**values: Any) -> Recipe:
        return recipe.model_copy(update={"run": run.model_copy(update=values)})

    if isinstance(tuning, FullTuning):
        yield "tuning.method: lora", recipe.model_copy(update={"tuning": LoraTuning()}), machine, "learns a little less"
    if isinstance(tuning, LoraTuning) and machine.kind == "cuda":
        quantised = QloraTuning.model_validate(tuning.model_dump() | {"method": "qlora"})
        yield (
            "tuning.method: qlora",
            recipe.model_copy(update={"tuning": quantised}),
            machine,
            "some quality, and the adapter is served on a base it was not trained on",
        )
    if run.gradient_checkpointing:
        yield "run.gradient_checkpointing: false", with_run(gradient_checkpointing=False), machine, "memory"
    else:
        yield "run.gradient_checkpointing: true", with_run(gradient_checkpointing=True), machine, "time, no quality"
    if not run.packing and plan.rows.padded_mean(plan.load.rows) > 1.1 * plan.rows.mean:
        yield "run.packing: true", with_run(packing=True), machine, "nothing where attention keeps rows apart"
    if run.micro_batch != AUTO:
        for size in sorted({run.micro_batch // 2, plan.largest_micro_batch}):
            if size >= 1 and size != run.micro_batch and run.batch_size % (size * run.launch.processes) == 0:
                yield f"run.micro_batch: {size}", with_run(micro_batch=size), machine, "nothing: the result is the same"
    if isinstance(tuning, FullTuning) and recipe.optim.optimizer == "adamw" and machine.kind == "cuda":
        eight = recipe.optim.model_copy(update={"optimizer": "adamw_8bit"})
        yield "optim.optimizer: adamw_8bit", recipe.model_copy(update={"optim": eight}), machine, "hardly any quality"
    if isinstance(tuning, FullTuning) and run.launch.processes > 1 and run.launch.strategy == "ddp":
        sharded = with_run(launch=run.launch.model_copy(update={"strategy": "zero3"}))
        yield "run.launch.strategy: zero3", sharded, machine, "traffic between the devices"


def _machines(plan: Plan, others: tuple[Machine, ...]) -> Iterator[tuple[str, Recipe, Machine, str]]:
    for other in others:
        if other.name != plan.machine.name:
            yield f"--device {other.name}", plan.recipe, other, "another machine"
