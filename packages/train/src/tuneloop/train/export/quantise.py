"""Quantising weights for inference, in the compressed-tensors format: transformers reads it (tested), vLLM lists it.

int8: weights by output channel, activations by token while it runs (W8A8): half the size, integer products. int4:
weights in groups of 128, 64 or 32 inputs (W4A16): a quarter of the size. Scales are found from the weights alone,
without calibration data: each group takes the scale with the least squared error, not the one that spans it. The
output head and the embeddings stay as they are. Cost: seconds for a small model, memory for the model in float32.
"""

# ruff: noqa: N803, N806 (suffixes are shapes: O outputs, G groups, I inputs of a group)

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)

from tuneloop.registry.errors import InvalidInput

Quantisation = Literal["int8", "int4"]
_KEPT = ["lm_head"]
_GROUP_SIZES = (128, 64, 32)
_SHRINKS = tuple(1.0 - 0.025 * step for step in range(17))  # 1.0 spans the group; 0.6 clips its outliers hard


def save_quantised(model: Any, kind: Quantisation, folder: Path) -> None:
    """Quantise the model in place and write its weights and config.

    Raises:
        InvalidInput: a layer's width is no multiple of any group size.
    """
    scheme = _scheme(model, kind)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=_KEPT))
    for layer in model.modules():
        if getattr(layer, "quantization_scheme", None) is not None:
            width = scheme.weights.group_size or layer.weight.shape[1]
            layer.weight_scale.data.copy_(scales(layer.weight.data, width, scheme.weights.num_bits))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


def scales(weight_OI: torch.Tensor, width: int, bits: int) -> torch.Tensor:
    """The scale of each group of `width` inputs, (O, G), in the weight's own format: least squared error among a grid.

    Args:
        weight_OI: a layer's weight.
        width: inputs of a group; all of them for one scale a channel.
        bits: 4 or 8, symmetric.
    """
    groups_OGI = weight_OI.float().view(weight_OI.shape[0], -1, width)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    spanning_OG1 = groups_OGI.abs().amax(-1, keepdim=True).clamp_min(1e-8) / (2**bits - 1) * 2
    best_OG1, least_OG1 = spanning_OG1, torch.full_like(spanning_OG1, torch.inf)
    for shrink in _SHRINKS:
        scale_OG1 = (spanning_OG1 * shrink).to(weight_OI.dtype).float()
        rounded_OGI = (groups_OGI / scale_OG1).round_().clamp_(lowest, highest).mul_(scale_OG1)
        error_OG1 = (rounded_OGI - groups_OGI).square_().sum(-1, keepdim=True)
        best_OG1 = torch.where(error_OG1 < least_OG1, scale_OG1, best_OG1)
        least_OG1 = torch.minimum(error_OG1, least_OG1)
    return best_OG1.squeeze(-1).to(weight_OI.dtype)


def _scheme(model: Any, kind: Quantisation) -> QuantizationScheme:
    if kind == "int8":
        return QuantizationScheme(
            targets=["Linear"],
            weights=QuantizationArgs(num_bits=8, strategy="channel"),
            input_activations=QuantizationArgs(num_bits=8, strategy="token", dynamic=True),
        )
    widths = {layer.in_features for layer in model.modules() if isinstance(layer, torch.nn.Linear)}
    fitting = [size for size in _GROUP_SIZES if all(width % size == 0 for width in widths)]
    if not fitting:
        raise InvalidInput(
            f"int4 needs layers whose inputs are a multiple of 32, this model's are {sorted(widths)}; use int8"
        )
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=4, strategy="group", group_size=fitting[0])
    )
