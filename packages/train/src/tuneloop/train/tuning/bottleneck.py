"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751), which PEFT does not have.

After each attention block and each MLP block of every layer, before the residual sum, stands
`x + up(dropout(activation(down(x))))` with `down` (H → S) and `up` (S → H). `up` begins at zero, so that a fresh adapter
changes nothing. The base stays frozen and its own parameter names stay as they are. Cost: 2·H·S + H + S parameters a
block, two blocks a layer; unlike LoRA's, its work cannot be merged into a weight, because of the non-linearity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.recipe.tuning import BottleneckTuning

PEFT_TYPE: Literal["TUNELOOP_BOTTLENECK"] = "TUNELOOP_BOTTLENECK"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BLOCKS = {"self_attn", "attention", "self_attention", "attn", "mlp", "feed_forward"}
_CHILD = "bottleneck"
_ACTIVATIONS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu}


class BottleneckConfig(BaseModel):
    """`adapter_config.json` of a bottleneck adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peft_type: Literal["TUNELOOP_BOTTLENECK"] = PEFT_TYPE
    base_model_name_or_path: str
    size: int
    activation: Literal["relu", "gelu", "silu"]
    dropout: float


class Bottleneck(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Down, non-linearity, up, and the input added: (…, H) → (…, H)."""

    def __init__(self, hidden: int, tuning: BottleneckTuning, device: Any) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, tuning.size, device=device, dtype=torch.float32)
        self.up = nn.Linear(tuning.size, hidden, device=device, dtype=torch.float32)
        self.dropout = nn.Dropout(tuning.dropout)
        self._activation = _ACTIVATIONS[tuning.activation]
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Its own weights are float32 whatever the base computes in; the sum is in the base's format."""
        inner = self._activation(self.down(x.to(self.down.weight.dtype)))
        return x + self.up(self.dropout(inner)).to(x.dtype)


def add_bottlenecks(model: Any, tuning: BottleneckTuning) -> Any:
    """Freeze the model and put a fresh bottleneck behind each attention and MLP block, in place.

    Raises:
        InvalidInput: the model has no block of a known name.
    """
    model.requires_grad_(False)
    blocks = [module for name, module in model.named_modules() if name.rpartition(".")[2] in _BLOCKS]
    if not blocks:
        raise InvalidInput(
            f"tuning.method bottleneck: {type(model).__name__} has no block named {', '.join(sorted(_BLOCKS))}; take lora"
        )
    for block in blocks:
        block.add_module(_CHILD, Bottleneck(model.config.hidden_size, tuning, model.device))
        block.register_forward_hook(_through_bottleneck)
    model.bottleneck_tuning = tuning
    return model


def has_bottlenecks(model: Any) -> bool:
    """Whether `add_bottlenecks` was here."""
    return hasattr(model, "bottleneck_tuning")


def save_bottlenecks(model: Any, folder: Path, base_name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    tuning: BottleneckTuning = model.bottleneck_tuning
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_weights(model), folder / WEIGHTS, metadata={"format": "pt"})
    config = BottleneckConfig(
        base_model_name_or_path=base_name, size=tuning.size, activation=tuning.activation, dropout=tuning.dropout
    )
    (folder / CONFIG).write_text(json.dumps(config.model_dump(), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_bottlenecks(model: Any, folder: Path) -> Any:
    """The model with a saved adapter on it, trainable, in place.

    Raises:
        InvalidInput: the folder holds no bottleneck adapter, or one of another base.
    """
    try:
        config = BottleneckConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise InvalidInput(f"{folder / CONFIG} describes no bottleneck adapter: {error}") from error
    tuning = BottleneckTuning(
        method="bottleneck", size=config.size, activation=config.activation, dropout=config.dropout
    )
    add_bottlenecks(model, tuning)
    saved, wanted = load_file(folder / WEIGHTS), _weights(model)
    shapes = {name: tuple(value.shape) for name, value in saved.items()}
    if shapes != {name: tuple(value.shape) for name, value in wanted.items()}:
        raise InvalidInput(f"{folder} belongs to another base than {config.base_model_name_or_path}: its blocks differ")
    model.load_state_dict(saved, strict=False)  # strict asks for the base's weights, too; names were compared above
    return model


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in model.named_parameters() if f".{_CHILD}." in name}


def _through_bottleneck(block: Any, _inputs: Any, output: Any) -> Any:
    """Attention blocks return a tuple whose first part is the stream; MLP blocks the stream alone."""
    adapter = getattr(block, _CHILD)
    return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)
