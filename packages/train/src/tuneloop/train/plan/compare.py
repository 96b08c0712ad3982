"""The fine-tuning guide's cost table, computed: 7B, 13B and 70B by QLoRA, LoRA and full, beside what the guide says.

The guide names no data set, length or epochs, so its table cannot be right or wrong for all; ours states what it
assumes. Shapes are Llama 2's (arXiv 2307.09288).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

from tuneloop.registry.errors import NotFound
from tuneloop.registry.printing import table
from tuneloop.train.plan.memory import GIB
from tuneloop.train.plan.plan import Machine, Plan, make_plan
from tuneloop.train.plan.prices import PriceTable
from tuneloop.train.plan.rows import assumed
from tuneloop.train.plan.shapes import ModelShape, shape_of_config
from tuneloop.train.recipe import Recipe

ROWS, TOKENS, EPOCHS, BATCH = 10_000, 512, 3, 16
_SHAPES = {"7B": (4096, 11008, 32, 32, 32), "13B": (5120, 13824, 40, 40, 40), "70B": (8192, 28672, 80, 64, 8)}
_METHODS = ("qlora", "lora", "full")
_MOST_DEVICES = 64


@dataclass(frozen=True)
class Guide:
    """A line of the guide's table, from least to most."""

    hours: tuple[int, int]
    usd: dict[str, tuple[int, int]]  # by provider


def _guide(hours: tuple[int, int], aws: tuple[int, int], azure: tuple[int, int], gcp: tuple[int, int]) -> Guide:
    return Guide(hours, {"aws": aws, "azure": azure, "gcp": gcp})


_GUIDE: dict[tuple[str, str], Guide] = {
    ("7B", "qlora"): _guide((2, 5), (8, 20), (10, 25), (9, 22)),
    ("7B", "lora"): _guide((5, 10), (20, 40), (25, 50), (22, 45)),
    ("7B", "full"): _guide((20, 40), (80, 160), (100, 200), (90, 180)),
    ("13B", "qlora"): _guide((4, 8), (16, 32), (20, 40), (18, 36)),
    ("13B", "lora"): _guide((8, 16), (32, 64), (40, 80), (36, 72)),
    ("70B", "qlora"): _guide((16, 32), (128, 256), (160, 320), (144, 288)),
}
# The memory that its `estimate_training_cost` computes.
_GUIDE_GIB_A_BILLION = {"qlora": 0.5, "lora": 2.0, "full": 4.0}


@dataclass(frozen=True)
class Line:
    """One model and method: ours, and the guide's."""

    size: str
    method: str
    devices: int
    plan: Plan
    gpu_hours: tuple[float, float, float]
    usd: dict[str, tuple[Decimal, Decimal, Decimal] | None]  # by provider, for the devices that are used
    guide: Guide | None
    why: str


def guide_shape(size: str) -> ModelShape:
    """Llama 2 of that size."""
    hidden, intermediate, layers, heads, kv_heads = _SHAPES[size]
    config = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    return shape_of_config(config, f"Llama-2-{size}")


def compare(prices: PriceTable, device: str = "A100-80G") -> list[Line]:
    """Every size and method on as few of these devices as carry it.

    Raises:
        NotFound: the table lists no such device.
    """
    name, found = prices.device(device)
    machine = Machine(name, "cuda", found, tuple(offer for offer in prices.offers if offer.device == name))
    return [_line(size, method, machine) for size in _SHAPES for method in _METHODS]


def _recipe(method: str, devices: int, micro_batch: int) -> Recipe:
    strategy = {"strategy": "zero3"} if devices > 1 else {}
    return Recipe.model_validate(
        {
            "base": {"model": "meta-llama/Llama-2"},
            "data": {"train": "train.jsonl"},
            "tuning": {"method": method},
            "objective": {"max_length": TOKENS},
            "run": {
                "epochs": float(EPOCHS),
                "batch_size": max(BATCH, devices),
                "micro_batch": micro_batch,
                "dtype": "bfloat16",
                "gradient_checkpointing": True,
                "launch": {"processes": devices, **strategy},
            },
            "evaluate": {"sets": {"test": "test.jsonl"}, "generate": 0},
            "publish": {"model": "guide"},
        }
    )


def _line(size: str, method: str, machine: Machine) -> Line:
    shape, rows = guide_shape(size), assumed(ROWS, TOKENS, "assumed")
    devices = 1
    while True:
        plan = make_plan(_recipe(method, devices, 1), shape, rows, machine)
        if plan.largest_micro_batch:
            break
        if devices >= _MOST_DEVICES:
            raise NotFound(f"{size} by {method} fits on no {_MOST_DEVICES} × {machine.name}; name a larger device")
        devices *= 2
    plan = make_plan(_recipe(method, devices, plan.largest_micro_batch), shape, rows, machine)
    hours = plan.hours.times(devices)
    guide = _GUIDE.get((size, method))
    usd = {provider: _for_devices(plan, provider, devices) for provider in sorted({o.provider for o in machine.offers})}
    return Line(
        size,
        method,
        devices,
        plan,
        (hours.low, hours.estimate, hours.high),
        usd,
        guide,
        _why(method, plan, devices, (hours.low, hours.high), guide),
    )


def _for_devices(plan: Plan, provider: str, devices: int) -> tuple[Decimal, Decimal, Decimal] | None:
    """On demand, for the devices that are used only, as the guide counts; `tuneloop plan` counts whole instances."""
    for cost in plan.costs:
        if cost.offer.provider == provider and not cost.spot:
            share = Decimal(devices) / (cost.offer.devices * cost.instances)
            low, mid, high = ((value * share).quantize(Decimal(1)) for value in (cost.low_usd, cost.usd, cost.high_usd))
            return low, mid, high
    return None


def _why(
    method: str,
    plan: Plan,
    devices: int,
    hours: tuple[float, float],
    guide: Guide | None,
) -> str:
    said = _GUIDE_GIB_A_BILLION[method] * plan.shape.parameters / 1e9
    ours = plan.memory.total * devices / GIB
    memory = f"memory: its formula says {said:.0f} GiB, the model {ours:.0f}"
    memory += {
        "full": ", for float32 weights, gradients and two averages are 16 bytes a parameter",
        "qlora": ", for it leaves out activations, the unquantised ends and the libraries",
        "lora": "",
    }[method]
    if guide is None:
        return f"the guide leaves it out; {memory}"
    if hours[0] > guide.hours[1]:
        verdict = f"longer than the guide's {guide.hours[0]}-{guide.hours[1]} h"
    elif hours[1] < guide.hours[0]:
        verdict = f"shorter than the guide's {guide.hours[0]}-{guide.hours[1]} h"
    else:
        return f"hours agree; {memory}"
    reason = "its hours scale by method alone (0.5, 1, 4 h a thousand rows), ours with operations"
    return f"{verdict}: {reason}; {memory}"


_NEEDS = ("model", "method", "devices", "GiB each", "GPU hours", "guide, hours")


def _money(line: Line, provider: str) -> tuple[str | None, str | None]:
    """What a provider takes by our prices, and by the guide's table."""
    ours, guide = line.usd[provider], line.guide.usd.get(provider) if line.guide else None
    return (
        f"${ours[1]} [{ours[0]}, {ours[2]}]" if ours else None,
        f"${guide[0]}-{guide[1]}" if guide else None,
    )


def shown(lines: list[Line]) -> str:
    """What is needed, below it where the guide differs and why, then the money."""
    needs = [
        (
            line.size,
            line.method,
            f"{line.devices} × {line.plan.machine.name}",
            f"{line.plan.memory.total / GIB:.0f}",
            f"{line.gpu_hours[1]:.1f} [{line.gpu_hours[0]:.1f}, {line.gpu_hours[2]:.1f}]",
            f"{line.guide.hours[0]}-{line.guide.hours[1]}" if line.guide else None,
        )
        for line in lines
    ]
    costs = [(line.size, line.method, *chain.from_iterable(_money(line, name) for name in line.usd)) for line in lines]
    of_providers = chain.from_iterable((name, f"guide, {name}") for name in lines[0].usd)
    why = "\n".join(f"{line.size} {line.method}: {line.why}" for line in lines)
    return (
        f"{ROWS:,} rows of {TOKENS} tokens, {EPOCHS} epochs, batch {BATCH}, bfloat16, gradient checkpointing, every "
        f"row as long as it may be\n\n{table(_NEEDS, needs)}\n\n{why}\n\n"
        f"dollars on demand, for the devices used\n\n{table(('model', 'method', *of_providers), costs)}\n\n"
        "the guide takes $4 a GPU hour on AWS ($8 for 70B), a quarter more on Azure, an eighth more on GCP; ours are "
        "those of prices.yaml\n"
        "GiB each are those of a step; `tuneloop plan` says as well what loading and measuring hold"
    )


def as_json(lines: list[Line]) -> list[dict[str, Any]]:
    """For programs."""
    return [
        {
            "model": line.size,
            "method": line.method,
            "device": line.plan.machine.name,
            "devices": line.devices,
            "memory_bytes_each": line.plan.memory.total,
            "gpu_hours": {k: round(v, 2) for k, v in zip(("low", "estimate", "high"), line.gpu_hours, strict=True)},
            "usd": {k: [str(part) for part in v] if v else None for k, v in line.usd.items()},
            "guide_gpu_hours": line.guide.hours if line.guide else None,
            "guide_usd": line.guide.usd if line.guide else None,
            "why": line.why,
        }
        for line in lines
    ]
