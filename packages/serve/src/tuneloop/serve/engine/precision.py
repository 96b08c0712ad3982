"""In which number format an engine computes: `auto` takes what the machine is fast in, and says why.

A CPU without bfloat16 instructions emulates them. Matrix products of 512 × 576 × 1536 on two cores with AVX2 alone ran
at 8 GFLOP/s in bfloat16 against 40 in float32, those of 8 rows at 1.7 against 14; with the instructions bfloat16 leads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tuneloop.serve.engine.launch import Device
from tuneloop.serve.engine.settings import EngineDtype

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86, arm64


@dataclass(frozen=True)
class Precision:
    """A number format, and why it was taken."""

    dtype: EngineDtype
    reason: str

    def __str__(self) -> str:
        return f"{self.dtype} because {self.reason}"


def choose_precision(asked: EngineDtype, device: Device, cpu_features: frozenset[str]) -> Precision:
    """The format to start vLLM with.

    Args:
        asked: the setting; anything but `auto` is kept.
        device: what vLLM's build computes on.
        cpu_features: what `cpu_features` read; empty where it cannot be told.
    """
    if asked != "auto":
        return Precision(asked, "the settings say so")
    if device == "gpu":
        return Precision("auto", "a GPU computes in the base's own format")
    if found := sorted(_BFLOAT16 & cpu_features):
        return Precision("bfloat16", f"this CPU has instructions for it ({found[0]})")
    return Precision("float32", "this CPU has no bfloat16 instructions and would emulate them, several times slower")


def cpu_features(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """The instruction sets the kernel lists; empty on a system without such a list."""
    if not cpuinfo.is_file():
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()
