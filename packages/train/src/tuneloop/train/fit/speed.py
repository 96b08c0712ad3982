"""What a token costs and what a device can do at most, for the share of its peak that a run uses (MFU).

A token costs 2 operations for each parameter forward, 2 backward through the activations, and 2 more for each
parameter that is trained (Kaplan et al. 2001.08361, split after what LoRA leaves out). A table in which tokens are
looked up multiplies nothing, unless it is the output head too. Attention's own products are left out, so the share is
a lower bound that falls with length.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from tuneloop.train.plan.prices import load_prices

# Dense bfloat16 peaks in operations per second, from the makers' data sheets, of what the plan's table leaves out.
_OTHERS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "L4": 121e12,
    "L40": 181e12,
    "A10": 125e12,
    "A10G": 70e12,
    "RTX 3090": 71e12,
}
_BORDER = re.compile(r"(?<=[A-Za-z])(?=\d{4})")  # the table's RTX4090 is the driver's RTX 4090


def peak_flops() -> float | None:
    """This device's peak in bfloat16; None on a CPU and on a device that is in no table."""
    return peak_of(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


def peak_of(device_name: str) -> float | None:
    """The peak of a device by the name its driver gives: that of the longest name whose words are all in it."""
    peaks = {name: device.tflops_bf16 * 1e12 for name, device in load_prices().devices.items()} | _OTHERS
    words = _words(device_name)
    found = [name for name in peaks if _words(name) <= words]
    return peaks[max(found, key=len)] if found else None


def _words(name: str) -> set[str]:
    """Whole, since an L40 is no L4; gibibytes alike, however they are written."""
    words = re.split(r"[^a-z0-9]+", _BORDER.sub(" ", name).lower())
    return {re.sub(r"^(\d+)g$", r"\1gb", word) for word in words}


def flops_per_token(model: Any) -> float:
    """Operations a token costs in a training step."""
    looked_up, multiplied = set[int](), set[int]()
    for module in model.modules():
        found = looked_up if isinstance(module, torch.nn.Embedding) else multiplied
        found.update(id(weight) for weight in module.parameters(recurse=False))
    every = trained = 0
    for weight in model.parameters():
        if id(weight) in looked_up - multiplied:
            continue
        count = _numbers(weight)
        every += count
        trained += count if weight.requires_grad else 0
    return 4.0 * every + 2.0 * trained


def _numbers(weight: Any) -> int:
    """How many numbers a weight stands for, however it is held."""
    packed = getattr(weight, "quant_state", None)  # bitsandbytes: two to a byte
    if packed is not None:
        return int(packed.shape.numel())
    return int(getattr(weight, "ds_numel", weight.numel()))  # ZeRO-3 leaves an empty tensor on each rank
