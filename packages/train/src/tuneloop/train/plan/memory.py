"""Memory a device needs at its worst moment, part by part, from shapes alone.

What a block keeps for the backward pass was counted with PyTorch's saved-tensor hooks on transformers' own Llama block,
not fitted: see `block_bytes_per_token`. What is fitted, by `benchmarks/plan_accuracy.py`, stands in `_CPU`: what the
interpreter and its libraries occupy, and how much more than the live tensors the C allocator holds. Two moments are
compared: the loss (activations at their fullest, beside the gradients of earlier micro-batches) and the optimiser's
step (all gradients). Sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tuneloop.train.plan.shapes import ModelShape
from tuneloop.train.plan.trained import Trained, trained_by
from tuneloop.train.recipe.run import Strategy
from tuneloop.train.recipe.tuning import FullTuning, LoraTuning, QloraTuning, TuningSection

Kind = Literal["cuda", "cpu"]
GIB = 2**30
MIB = 2**20
_TILE_VOCAB, _TILE_TOKENS = 32768, 4096  # TRL's fused head works in such tiles
_CPU_TILE_BYTES = 29  # of float32 temporaries per token and vocabulary entry where there is no Triton kernel
_NF4_CONSTANTS = {True: 1 / 64 + 4 / (64 * 256), False: 4 / 64}  # bytes a weight: one constant per 64 weights


@dataclass(frozen=True)
class Allocator:
    """What a kind of device takes beyond live tensors."""

    fixed: int  # interpreter and libraries, or the CUDA context
    activations: float  # held bytes per live byte
    loss: float
    a_tile: float  # held beyond that for each tile of the vocabulary after the second: seen, not explained
    low: float  # bounds, relative to the prediction
    high: float
    dora: float = 0.0  # held beyond that for each byte of outputs that DoRA scales: seen, not explained
    lora: float = 0.0  # held beyond that for each byte under a low-rank adapter on an unquantised base: the same


_CPU = Allocator(
    fixed=771 * MIB, activations=1.138, loss=1.483, a_tile=0.576, low=0.90, high=1.08, dora=0.76, lora=0.191
)
_CUDA = Allocator(
    fixed=int(0.8 * GIB), activations=1.05, loss=1.05, a_tile=0.0, low=0.90, high=1.20
)  # not measured here: wider


def allocator_of(kind: Kind) -> Allocator:
    """Of a kind of device."""
    return _CPU if kind == "cpu" else _CUDA


@dataclass(frozen=True)
class Load:
    """What one device works on at a time."""

    rows: int  # per forward pass
    length: int  # tokens of a row, padding included
    dtype: Literal["bfloat16", "float32"]
    learned_share: float = 1.0  # of the tokens
    padded: bool = True  # rows differ in length, so that attention is masked
    checkpointing: bool = False
    accumulates: bool = False  # more than one forward pass a step
    optimizer: str = "adamw"
    strategy: Strategy = "ddp"
    devices: int = 1
    offload: bool = False
    eager: bool = False  # attention that stores its scores
    forward_copies: int = 1  # forward passes of a row kept at once: two for pairs (dpo, reward)
    scores: bool = False  # a reward model: a head of one output in place of the vocabulary's


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at its worst moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    cache: int  # keys and values of answers that are being written
    overhead: int
    low: int
    high: int
    moment: str

    @property
    def total(self) -> int:
        """All parts."""
        held = self.weights + self.gradients + self.optimizer + self.activations
        return held + self.loss + self.cache + self.overhead

    def beside(self, weights: int) -> Memory:
        """With another model's weights on the device."""
        return replace(self, weights=self.weights + weights, low=self.low + weights, high=self.high + weights)


def memory_of(shape: ModelShape, tuning: TuningSection, load: Load, kind: Kind) -> Memory:
    """The worst moment of a step.

    Raises:
        InvalidInput: a target of `tuning` names no layer of the model.
    """
    trained = trained_by(shape, tuning)
    allocator = allocator_of(kind)
    full = isinstance(tuning, FullTuning)
    sharded = load.devices if load.strategy != "ddp" else 1
    whole_shards = load.devices if load.strategy in {"zero3", "fsdp"} else 1
    gradients = 4 * trained.parameters // sharded
    optimizer = 0 if load.offload else optimizer_bytes(load.optimizer, trained.parameters) // sharded
    weights = weight_bytes(shape, tuning, load, trained) // whole_shards
    if load.offload and load.strategy != "zero2":
        weights = 0
    if whole_shards > 1 or load.offload:
        weights += 2 * _block_bytes(shape, tuning, load)  # the blocks that are gathered to be computed
    activations = activation_bytes(shape, load, trained, full)
    loss = max(_loss(shape, load, kind, full), _workspace(shape, load))
    # On a CPU the allocator keeps the room of an adapter's small gradients from step to step.
    beside = gradients if load.accumulates or (kind == "cpu" and not full) else 0
    in_loss = int(loss * (allocator.loss + allocator.a_tile * _more_tiles(shape, load)))
    scaled = _tokens(load) * trained.scaled_by_dora * bytes_of(load.dtype) * (1 if load.checkpointing else shape.layers)
    if isinstance(tuning, LoraTuning):
        activations = int(activations * (1 + allocator.lora))
    held = int((activations + allocator.dora * scaled) * allocator.activations)
    step = _optimizer_step(shape, load, kind, full, gradients)
    left = held if kind == "cpu" else 0  # what was activations lies scattered between the gradients, and is kept
    if held + in_loss + beside >= left + gradients + step:
        moment, present = "the loss", beside
    else:
        moment, present, held, in_loss = "the optimiser's step", gradients, left, 0
        optimizer += step
    total = weights + present + optimizer + held + in_loss + allocator.fixed
    return Memory(
        weights=weights,
        gradients=present,
        optimizer=optimizer,
        activations=held,
        loss=in_loss,
        cache=0,
        overhead=allocator.fixed,
        low=int(total * allocator.low),
        high=int(total * allocator.high),
        moment=moment,
    )


def whole_bytes(shape: ModelShape, tuning: TuningSection, load: Load, kind: Kind) -> int | None:
    """What one device holds beside the steps, where that is more than a step's own weights; None otherwise.

    The unquantised base on which a QLoRA adapter is measured, and the weights that are loaded whole before they are
    sharded.
    """
    fixed = allocator_of(kind).fixed
    if isinstance(tuning, QloraTuning) and tuning.evaluate_unquantized:
        return bytes_of(load.dtype) * shape.parameters + fixed
    if load.strategy in {"zero3", "fsdp"} and load.devices > 1:
        return weight_bytes(shape, tuning, load, trained_by(shape, tuning)) + fixed
    return None


def _optimizer_step(shape: ModelShape, load: Load, kind: Kind, full: bool, gradients: int) -> int:
    """Copies AdamW makes while it steps: of all weights at once on a GPU, of the largest one, twice, on a CPU."""
    if load.offload:
        return 0
    if kind == "cuda":
        return gradients
    return 8 * shape.head_parameters if full else 0


def _more_tiles(shape: ModelShape, load: Load) -> int:
    """Tiles of the vocabulary after the second."""
    return 0 if load.scores else max(0, -(-shape.vocab // _TILE_VOCAB) - 2)


def optimizer_bytes(optimizer: str, parameters: int) -> int:
    """AdamW's two averages; in 8 bits with one constant per 256 values. Paged ones may leave the device: then less."""
    return 8 * parameters if optimizer == "adamw" else int(parameters * (2 + 8 / 256))


def bytes_of(dtype: str) -> int:
    """Of a number in that format."""
    return 2 if dtype == "bfloat16" else 4


def weight_bytes(shape: ModelShape, tuning: TuningSection, load: Load, trained: Trained) -> int:
    """Of base and adapter together, unsharded, as training holds them."""
    size = bytes_of(load.dtype)
    if isinstance(tuning, FullTuning):  # trained in float32; autocast keeps a copy of what products read
        copies = 2 * (shape.linear_parameters + shape.head_parameters) if load.dtype == "bfloat16" else 0
        return 4 * shape.parameters + copies
    linear: float = size * shape.linear_parameters
    if isinstance(tuning, QloraTuning):
        per_weight = 1.0 + 4 / shape.hidden if tuning.bits == 8 else 0.5 + _NF4_CONSTANTS[tuning.double_quantization]
        linear = per_weight * shape.linear_parameters
    adapter = (4 + (2 if load.dtype == "bfloat16" else 0)) * trained.parameters
    absent = shape.head_parameters if load.scores and not shape.tied else 0
    return int(linear) + size * (shape.parameters - shape.linear_parameters - absent) + adapter


def _block_bytes(shape: ModelShape, tuning: TuningSection, load: Load) -> int:
    size = 4 if isinstance(tuning, FullTuning) else bytes_of(load.dtype)
    return size * max(shape.linear_parameters // shape.layers, shape.head_parameters)


def _tokens(load: Load) -> int:
    return load.rows * load.length * load.forward_copies


def block_bytes_per_token(shape: ModelShape, load: Load, trained: Trained) -> int:
    """What one block keeps for the backward pass, per token.

    A frozen block keeps both norms' inputs (float32), the queries, keys, values and output of attention with its
    log-sums, and three tensors of the MLP's width; a trained part adds what it reads (`trained.py`).
    """
    size = bytes_of(load.dtype)
    attention = 2 * shape.query + 2 * shape.key_value
    if load.padded and shape.kv_heads < shape.heads:  # a mask makes SDPA repeat keys and values for every head
        attention += 2 * (shape.query - shape.key_value)
    float32 = 2 * shape.hidden + shape.heads + 2 + trained.kept_float32
    scores = 3 * shape.heads * load.length if load.eager else 0
    return 4 * float32 + size * (attention + 3 * shape.intermediate + trained.kept_elements + scores)


def activation_bytes(shape: ModelShape, load: Load, trained: Trained, full: bool) -> int:
    """What a forward pass keeps for the backward pass, as it is counted."""
    block = block_bytes_per_token(shape, load, trained)
    size = bytes_of(load.dtype)
    ends = (4 + size) * shape.hidden * (2 if full else 1)  # embedding, last norm
    if load.checkpointing:  # the stream between blocks, and one block while it is computed again
        return _tokens(load) * (shape.layers * size * shape.hidden + block + ends)
    return _tokens(load) * (shape.layers * block + ends)


def _workspace(shape: ModelShape, load: Load) -> int:
    """Gradients of one MLP while it is passed backward."""
    return _tokens(load) * bytes_of(load.dtype) * (3 * shape.intermediate + 2 * shape.hidden)


def _loss(shape: ModelShape, load: Load, kind: Kind, full: bool) -> int:
    """TRL's fused head: logits exist in tiles only; on a GPU for learned tokens only. A reward model's has no tiles."""
    if load.scores:
        return _tokens(load) * (bytes_of(load.dtype) + 2 * shape.hidden * 4)
    size, width = bytes_of(load.dtype), min(shape.vocab, _TILE_VOCAB)
    scored = _tokens(load) if kind == "cpu" else int(_tokens(load) * load.learned_share)
    rows = min(scored, _TILE_TOKENS)
    tile = rows * width * (size + (_CPU_TILE_BYTES if kind == "cpu" else 0))
    head = 4 * shape.head_parameters if full else 0  # its gradient, first of all
    casts = width * shape.hidden * (2 + (4 if kind == "cpu" else 0)) if full and size == 2 else 0
    return tile + head + casts + 2 * scored * shape.hidden * 4
