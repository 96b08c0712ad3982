"""Time of a step from operations and bytes, with bounds.

A linear layer costs 2 operations a weight and token forward, 2 backward for its input, and 2 more where it is trained;
checkpointing computes the blocks forward once more. Attention's own products grow with the square of the length. A
device reaches a share of its peak: measured on CPUs here (`benchmarks/plan_accuracy.py`), an assumed, wide range on
GPUs, where nothing was measured yet, with the host's launches as the least a pass can take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tuneloop.train.plan.memory import Load, activation_bytes
from tuneloop.train.plan.shapes import ModelShape
from tuneloop.train.plan.trained import trained_by
from tuneloop.train.recipe.tuning import FullTuning, LoraTuning, QloraTuning, TuningSection

LAUNCH_S = 0.0025  # a block's kernels forward and backward in eager mode, at least
_DEQUANTISED_BYTES = 4.5  # per weight and pass: read 4 bits, write and read bfloat16
_DORA_BYTES = 83  # per weight and pass on a CPU: the weights with their update, and the lengths of their columns
_INT8_SHARE = 0.68  # of the efficiency: outlier features go through a product of their own


@dataclass(frozen=True)
class Speed:
    """What a device computes and moves."""

    flops: float  # peak in the run's format, a second
    bandwidth: float  # bytes a second
    efficiency: float  # share of the peak that a run reaches
    slowest: float  # the same, bounds
    quickest: float
    launches: bool = True  # whether a host must keep it busy
    traversals: float = 0.0  # times that a pass moves what it keeps for the backward pass, beside products
    update_bytes: float = 28  # moved by AdamW for each trained weight
    dequantised_bytes: float = _DEQUANTISED_BYTES  # moved for each quantised weight and pass


@dataclass(frozen=True)
class Seconds:
    """An estimate with its bounds."""

    estimate: float
    low: float
    high: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.estimate + other.estimate, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Seconds:
        """All three, scaled."""
        return Seconds(self.estimate * factor, self.low * factor, self.high * factor)


def flops_of_pass(
    shape: ModelShape,
    tuning: TuningSection,
    load: Load,
    *,
    length: float,
    scored_share: float,
    attended: float | None = None,
) -> float:
    """Operations of one forward and backward pass over `load.rows` rows of `length` tokens.

    `attended` is over how many tokens attention's products go for each, masked ones included; None: over its row.
    """
    tokens = load.rows * length * load.forward_copies
    full = isinstance(tuning, FullTuning)
    linear = shape.linear_parameters * (6 if full else 4)
    linear += 2 * shape.linear_parameters if load.checkpointing else 0
    extra = 0 if full else 6 * trained_by(shape, tuning).parameters
    attention = shape.layers * 2 * shape.query * (attended or length) * (3.5 + (1 if load.checkpointing else 0))
    head = 6 * shape.hidden if load.scores else shape.head_parameters * (8 if full else 6) * scored_share
    return tokens * (linear + extra + attention + head)


def flops_forward(shape: ModelShape, load: Load, *, length: float) -> float:
    """Operations of reading `load.rows` rows of `length` tokens, every token's probability included."""
    attention = shape.layers * 2 * shape.query * length
    head = 2 * (shape.hidden if load.scores else shape.head_parameters)
    return load.rows * length * load.forward_copies * (2 * shape.linear_parameters + attention + head)


def step_seconds(
    shape: ModelShape,
    tuning: TuningSection,
    load: Load,
    speed: Speed,
    *,
    passes: int,
    length: float,
    scored: float,
    attended: float | None = None,
) -> Seconds:
    """One optimiser step of `passes` forward and backward passes; `flops_of_pass` says what `attended` is."""
    flops = flops_of_pass(shape, tuning, load, length=length, scored_share=scored, attended=attended)
    share, moved = 1.0, 0.0
    if isinstance(tuning, QloraTuning):
        share = _INT8_SHARE if tuning.bits == 8 else 1.0
        if tuning.bits == 4:
            times = 3 if load.checkpointing else 2
            moved = speed.dequantised_bytes * shape.linear_parameters * times / speed.bandwidth
    if isinstance(tuning, LoraTuning | QloraTuning) and tuning.dora and speed.traversals:
        moved += _DORA_BYTES * shape.linear_parameters / speed.bandwidth
    if speed.traversals:
        whole = replace(load, checkpointing=False)
        kept = activation_bytes(shape, whole, trained_by(shape, tuning), isinstance(tuning, FullTuning))
        again = 1.5 if load.checkpointing else 1.0
        moved += speed.traversals * again * kept * length / load.length / speed.bandwidth
    least = LAUNCH_S * shape.layers if speed.launches else 0.0
    shards = load.devices if load.strategy != "ddp" else 1
    update = (
        speed.update_bytes
        * trained_by(shape, tuning).parameters
        / shards
        / speed.bandwidth
        * (10 if load.offload else 1)
    )

    def at(efficiency: float) -> float:
        launching = least * speed.efficiency / efficiency  # a host is slow or quick in the same measure
        return passes * max(flops / (speed.flops * efficiency * share) + moved, launching) + update

    return Seconds(at(speed.efficiency), at(speed.quickest), at(speed.slowest))
