"""In which number format a run computes: `auto` takes what the machine is fast in, and says why.

A GPU is fast in bfloat16 from Ampere on. A CPU may or may not have instructions for it, and without them emulates it
five times slower than float32 (two cores with AVX2: 8 against 40 GFLOP/s), so it is measured: two small matrix
products, some 0.1 s.
"""

from __future__ import annotations

import time
from typing import Literal

import torch

from tuneloop.train.choice import Choice

Dtype = Literal["bfloat16", "float32"]
_ROWS, _IN, _OUT, _REPEATS = 256, 576, 1536, 5
_AMPERE = 8  # major compute capability
_WORTH_IT = 1.1  # bfloat16 loses digits; level speed is no reason for it


def choose_dtype(asked: Literal["auto"] | Dtype, device: str) -> Choice[Dtype]:
    """The recipe's format, or the faster one of this machine."""
    if asked != "auto":
        return Choice(asked, "the recipe says so")
    if device != "cpu":
        return of_gpu(torch.cuda.get_device_capability()[0])
    return faster(float32_s=_seconds(torch.float32), bfloat16_s=_seconds(torch.bfloat16))


def of_gpu(capability: int) -> Choice[Dtype]:
    """The format for a GPU of this major compute capability."""
    if capability < _AMPERE:
        return Choice("float32", "this GPU has no bfloat16 of its own, and float16's range is too narrow for gradients")
    return Choice("bfloat16", "the device is fast in it and its range is that of float32")


def faster(*, float32_s: float, bfloat16_s: float) -> Choice[Dtype]:
    """The format for a CPU whose matrix products take these times."""
    ratio = float32_s / bfloat16_s
    shown = f"matrix products here take {1 / ratio:.1f} times as long in bfloat16 as in float32"
    return Choice("bfloat16" if ratio > _WORTH_IT else "float32", shown)


def _seconds(dtype: torch.dtype) -> float:
    """The quickest of some products of a transformer's shape."""
    left, right = torch.ones(_ROWS, _IN, dtype=dtype), torch.ones(_OUT, _IN, dtype=dtype)
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - began)
    return min(times)
