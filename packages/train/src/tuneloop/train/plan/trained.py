"""How many parameters a method trains on a shape, and what its adapter makes the run keep for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.plan.shapes import ModelShape
from tuneloop.train.recipe.tuning import BottleneckTuning, FullTuning, Ia3Tuning, LowRankTuning, TuningSection

_SHARED_INPUT = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention"} | {
    "gate_proj": "mlp",
    "up_proj": "mlp",
}  # layers that read the same tensor: it is kept once
_KEPT_ANYWAY = {"o_proj"}  # its input is what attention keeps of itself


@dataclass(frozen=True)
class Trained:
    """What a method adds to a model."""

    parameters: int
    kept_elements: int  # of the run's dtype, per token and block, beyond what a frozen block keeps
    kept_float32: int = 0  # the same, in float32
    scaled_by_dora: int = 0  # of the kept elements, those of outputs that DoRA scales


def trained_by(shape: ModelShape, tuning: TuningSection) -> Trained:
    """Count a method's parameters and activations.

    Raises:
        InvalidInput: a target names no linear layer of the model.
    """
    if isinstance(tuning, FullTuning):
        every = sum(_inputs_of(shape, tuple(shape.linears)).values())
        return Trained(shape.parameters, every + 2 * shape.hidden)  # a trained norm keeps its normalised input, too
    if isinstance(tuning, BottleneckTuning):
        block = 2 * shape.hidden * tuning.size + shape.hidden + tuning.size
        return Trained(shape.layers * 2 * block, 0, 2 * (shape.hidden + 2 * tuning.size))
    if isinstance(tuning, Ia3Tuning):
        scales = 2 * shape.key_value + shape.intermediate
        return Trained(shape.layers * scales, 2 * shape.key_value + shape.intermediate)
    return _low_rank(shape, tuning)


def _low_rank(shape: ModelShape, tuning: LowRankTuning) -> Trained:
    targets = tuple(shape.linears) if tuning.adapts_all_linear else tuning.target_modules
    if unknown := [name for name in targets if name not in shape.linears]:
        raise InvalidInput(
            f"tuning.target_modules: {shape.name} has no linear layer {unknown[0]!r}; it has {', '.join(shape.linears)}"
        )
    pairs = [shape.linears[name] for name in targets]
    magnitudes = sum(n_out for _, n_out in pairs) if tuning.dora else 0
    parameters = shape.layers * (sum(tuning.rank * (n_in + n_out) for n_in, n_out in pairs) + magnitudes)
    inputs = _inputs_of(shape, targets)
    kept = sum(inputs.values()) + tuning.rank * len(targets)
    if tuning.dropout > 0.0:  # each layer then keeps its own thinned input, and the mask
        kept += sum(n_in for n_in, _ in pairs) * 3 // 2
    scaled = 2 * sum(n_out for _, n_out in pairs) if tuning.dora else 0
    return Trained(parameters, kept + scaled, scaled_by_dora=scaled)


def _inputs_of(shape: ModelShape, targets: tuple[str, ...]) -> dict[str, int]:
    """The tensors that these layers read, each once: name of the tensor → width."""
    return {_SHARED_INPUT.get(name, name): shape.linears[name][0] for name in targets if name not in _KEPT_ANYWAY}
