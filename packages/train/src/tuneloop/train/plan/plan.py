"""The plan itself: a recipe, a shape, the rows and a device in; memory, time, energy and money out. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal

from tuneloop.train.plan.answering import MEASURED, learned_answers, measured_answers, memory_of_answers
from tuneloop.train.plan.memory import GIB, Kind, Load, Memory, memory_of, whole_bytes
from tuneloop.train.plan.prices import Device, Offer
from tuneloop.train.plan.rounds import beside_seconds, reward_model_bytes, round_of
from tuneloop.train.plan.rows import RowFacts
from tuneloop.train.plan.shapes import ModelShape
from tuneloop.train.plan.timing import Seconds, Speed, step_seconds
from tuneloop.train.plan.trained import trained_by
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.run import AUTO

_CENT = Decimal("0.01")
_CPU_EFFICIENCY, _CPU_SLOWEST, _CPU_QUICKEST = 0.493, 0.38, 0.65  # of a bare matrix product; measured
_CPU_TRAVERSALS, _CPU_UPDATE_BYTES, _CPU_DEQUANTISED_BYTES = 10.4, 149.0, 18.3  # see `Speed`; measured
_GPU_EFFICIENCY, _GPU_SLOWEST, _GPU_QUICKEST = 0.40, 0.22, 0.55  # of the peak on the data sheet
_SHARE_USED = 0.95  # of a device's memory; the rest is the system's
_PAIRED = {"dpo", "reward"}


@dataclass(frozen=True)
class Machine:
    """The device of a plan."""

    name: str
    kind: Kind
    device: Device
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True)
class Cost:
    """One offer's price of the whole run."""

    offer: Offer
    spot: bool
    instances: int
    low_usd: Decimal
    usd: Decimal
    high_usd: Decimal


@dataclass(frozen=True)
class Plan:
    """Everything a plan says."""

    recipe: Recipe
    shape: ModelShape
    machine: Machine
    rows: RowFacts
    load: Load
    trained_parameters: int
    memory: Memory  # at the fullest moment of all
    answering: Memory | None  # at the fullest of those in which answers are written
    whole: int | None  # bytes on one device beside the steps, to load or to measure; see `memory.whole_bytes`
    fits: Literal["yes", "perhaps", "no"]
    largest_micro_batch: int
    steps: int
    step: Seconds
    hours: Seconds
    energy_kwh: Seconds
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]


def make_plan(recipe: Recipe, shape: ModelShape, rows: RowFacts, machine: Machine) -> Plan:
    """Work it out.

    Raises:
        InvalidInput: a target of the recipe names no layer of the model.
    """
    largest = _largest(recipe, shape, rows, machine)
    micro = recipe.run.micro_batch
    chosen = max(1, largest) if micro == AUTO else micro
    load = load_of(recipe, rows, machine, chosen)
    moments = _moments(recipe, shape, load, machine.kind)
    measured = measured_answers(recipe, rows)
    if measured is not None:
        moments.append(memory_of_answers(shape, recipe.tuning, load, measured, machine.kind))
    memory = max(moments, key=lambda moment: moment.total)
    whole = whole_bytes(shape, recipe.tuning, load, machine.kind)
    steps = recipe.run.planned_steps(recipe.objective.drawn(rows.rows))
    batches = recipe.run.batch_size // recipe.run.launch.processes // chosen
    length = rows.mean if recipe.run.packing else rows.padded_mean(chosen)
    scored = 1.0 if machine.kind == "cpu" else rows.learned_share * rows.mean / length
    speed = speed_of(machine, load)
    step = step_seconds(
        shape,
        recipe.tuning,
        load,
        speed,
        passes=batches * round_of(recipe.objective).learned,
        length=length,
        scored=scored,
        attended=_attended(recipe, chosen, length),
    ) + beside_seconds(recipe.objective, shape, recipe.tuning, load, speed, passes=batches, length=length)
    hours = step.times(steps / 3600)
    devices = recipe.run.launch.processes
    energy = hours.times(machine.device.watts / 1000 * (devices if machine.kind == "cuda" else 1))
    return Plan(
        recipe=recipe,
        shape=shape,
        machine=machine,
        rows=rows,
        load=load,
        trained_parameters=trained_by(shape, recipe.tuning).parameters,
        memory=memory,
        answering=max(moments[1:], key=lambda moment: moment.total, default=None),
        whole=whole,
        fits="no" if whole is not None and whole > _room(machine) else _fits(moments, machine),
        largest_micro_batch=largest,
        steps=steps,
        step=step,
        hours=hours,
        energy_kwh=energy,
        costs=costs_of(hours, machine, devices),
        notes=tuple(_notes(recipe, machine, memory, whole)),
    )


def _attended(recipe: Recipe, micro_batch: int, length: float) -> float:
    """Over how many tokens attention goes for each: packed rows are masked from each other, unless flash attention's
    kernels leave them out."""
    masked = recipe.run.packing and recipe.run.attention != "flash_attention_2"
    return length * micro_batch if masked else length


def _moments(recipe: Recipe, shape: ModelShape, load: Load, kind: Kind) -> list[Memory]:
    """Of a step, and of the answers it learns from, where it writes them itself."""
    learned = learned_answers(recipe, load)
    writing = [] if learned is None else [memory_of_answers(shape, recipe.tuning, load, learned, kind)]
    judge = reward_model_bytes(recipe, shape, load.dtype)
    return [moment.beside(judge) for moment in (memory_of(shape, recipe.tuning, load, kind), *writing)]


def load_of(recipe: Recipe, rows: RowFacts, machine: Machine, micro_batch: int) -> Load:
    """The worst-case micro-batch: every row as long as the longest."""
    run = recipe.run
    return Load(
        rows=micro_batch,
        length=rows.longest,
        dtype=resolved_dtype(recipe, machine),
        learned_share=rows.learned_share,
        padded=micro_batch > 1 and (run.packing or rows.differ),  # then attention is masked
        checkpointing=run.gradient_checkpointing,
        accumulates=run.batch_size > micro_batch * run.launch.processes,
        optimizer=recipe.optim.optimizer,
        strategy=run.launch.strategy,
        devices=run.launch.processes,
        offload=run.launch.cpu_offload,
        eager=run.attention == "eager",
        forward_copies=2 if recipe.objective.kind in _PAIRED else 1,
        scores=recipe.objective.kind == "reward",
    )


def resolved_dtype(recipe: Recipe, machine: Machine) -> Literal["bfloat16", "float32"]:
    """What `run.dtype: auto` will be: bfloat16 where the device is faster in it."""
    if recipe.run.dtype != "auto":
        return recipe.run.dtype
    return "bfloat16" if machine.device.tflops_bf16 > machine.device.tflops_fp32 else "float32"


def speed_of(machine: Machine, load: Load) -> Speed:
    """What the machine computes in the run's format."""
    device = machine.device
    flops = 1e12 * (device.tflops_bf16 if load.dtype == "bfloat16" else device.tflops_fp32)
    if machine.kind == "cpu":
        return Speed(
            flops,
            1e9 * device.bandwidth_gb_s,
            _CPU_EFFICIENCY,
            _CPU_SLOWEST,
            _CPU_QUICKEST,
            launches=False,
            traversals=_CPU_TRAVERSALS,
            update_bytes=_CPU_UPDATE_BYTES,
            dequantised_bytes=_CPU_DEQUANTISED_BYTES,
        )
    return Speed(flops, 1e9 * device.bandwidth_gb_s, _GPU_EFFICIENCY, _GPU_SLOWEST, _GPU_QUICKEST)


def costs_of(hours: Seconds, machine: Machine, devices: int) -> tuple[Cost, ...]:
    """Every offer of the device, the cheapest first; an instance is paid whole, used or not."""
    found = []
    for offer in machine.offers:
        instances = math.ceil(devices / offer.devices)
        for spot in (False, True):
            hourly = offer.hourly_usd(spot=spot)
            if hourly is None:
                continue
            low, mid, high = (_money(hourly * instances, h) for h in (hours.low, hours.estimate, hours.high))
            found.append(Cost(offer, spot, instances, low, mid, high))
    return tuple(sorted(found, key=lambda cost: cost.usd))


def _money(hourly: Decimal, hours: float) -> Decimal:
    return (hourly * Decimal(repr(hours))).quantize(_CENT, ROUND_HALF_UP)


def _fits(moments: list[Memory], machine: Machine) -> Literal["yes", "perhaps", "no"]:
    room = _room(machine)
    if all(moment.high <= room for moment in moments):
        return "yes"
    return "perhaps" if all(moment.total <= room for moment in moments) else "no"


def _room(machine: Machine) -> float:
    return machine.device.memory_gib * GIB * _SHARE_USED


def _largest(recipe: Recipe, shape: ModelShape, rows: RowFacts, machine: Machine) -> int:
    """The largest micro-batch whose upper bound fits; 0 when not even one row does."""
    share = recipe.run.batch_size // recipe.run.launch.processes
    fitting = [
        n
        for n in range(1, share + 1)
        if share % n == 0
        and _fits(_moments(recipe, shape, load_of(recipe, rows, machine, n), machine.kind), machine) == "yes"
    ]
    return max(fitting, default=0)


def _notes(recipe: Recipe, machine: Machine, memory: Memory, whole: int | None) -> list[str]:
    notes = ["time is that of the training steps; loading, measuring and publishing come on top"]
    if memory.moment == MEASURED:
        notes.append(
            "the fullest moment is no step: a smaller evaluate.generate or evaluate.max_new_tokens takes less, a "
            "smaller micro-batch does not; held-out questions count as long as the rows that are learned"
        )
    if whole is not None and recipe.tuning.method == "qlora":
        notes.append(
            f"the adapter is measured on the unquantised base, which takes {whole / GIB:.1f} GiB; where that does not "
            "fit, set tuning.evaluate_unquantized to false"
        )
    elif whole is not None:
        notes.append(f"every device loads the weights whole, {whole / GIB:.1f} GiB, before it keeps its share of them")
    if recipe.objective.kind != "sft":
        notes.append(
            f"objective {recipe.objective.kind}: the model is calibrated on sft only; its own answers cost more"
        )
    if machine.kind == "cuda":
        notes.append("memory and time on GPUs are computed, not yet measured: the bounds are wide for that reason")
    if recipe.run.compile:
        notes.append("run.compile is not in the model: steps may be quicker, the first ones are slower")
    if recipe.run.launch.processes > 1:
        notes.append("the exchange of gradients between devices is not in the model")
    return notes


def as_json(plan: Plan, servable: str | None, advice: list[dict[str, Any]]) -> dict[str, Any]:
    """Every figure, with units in the names."""
    memory, answering, audit = plan.memory, plan.answering, plan.rows.audit

    def bounded(value: Seconds, digits: int) -> dict[str, float]:
        return {key: round(getattr(value, key), digits) for key in ("low", "estimate", "high")}

    return {
        "model": {"name": plan.shape.name, "parameters": plan.shape.parameters, "trained": plan.trained_parameters},
        "device": {"name": plan.machine.name, "kind": plan.machine.kind, **plan.machine.device.model_dump()},
        "dtype": plan.load.dtype,
        "memory_bytes": {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "loss": memory.loss,
            "cache": memory.cache,
            "overhead": memory.overhead,
            "total": memory.total,
            "low": memory.low,
            "high": memory.high,
            "moment": memory.moment,
            "whole": plan.whole,
            "answering": answering
            and {
                "moment": answering.moment,
                "cache": answering.cache,
                "total": answering.total,
                "high": answering.high,
            },
        },
        "fits": plan.fits,
        "micro_batch": {"planned": plan.load.rows, "largest_that_fits": plan.largest_micro_batch},
        "rows": {
            "count": plan.rows.rows,
            "longest_tokens": plan.rows.longest,
            "mean_tokens": round(plan.rows.mean, 1),
            "learned_share": round(plan.rows.learned_share, 4),
            "source": plan.rows.source,
        },
        "label_audit": audit.as_json() if audit else None,
        "leakage": plan.rows.leakage.as_json() if plan.rows.leakage else None,
        "steps": plan.steps,
        "step_s": bounded(plan.step, 4),
        "hours": bounded(plan.hours, 4),
        "energy_kwh": bounded(plan.energy_kwh, 4),
        "costs": [
            {
                "provider": cost.offer.provider,
                "instance": cost.offer.instance,
                "instances": cost.instances,
                "spot": cost.spot,
                "low_usd": str(cost.low_usd),
                "usd": str(cost.usd),
                "high_usd": str(cost.high_usd),
                "as_of": cost.offer.as_of.isoformat(),
            }
            for cost in plan.costs
        ],
        "servable": {"yes": servable is None, "why_not": servable},
        "advice": advice,
        "notes": list(plan.notes),
    }
