"""This machine as a device of a plan, without torch: its memory, what its cores compute, its GPU where there is one.

A CPU is measured with matrix products of a transformer's shape and by copying memory (0.2 s); a GPU is asked for by
nvidia-smi and looked up in the table.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.plan.memory import GIB
from tuneloop.train.plan.plan import Machine
from tuneloop.train.plan.prices import Device, PriceTable

_ROWS, _IN, _OUT, _REPEATS = 512, 1024, 2048, 5
_CPU_WATTS_A_CORE = 8.0  # of a server's processor under load, its share of memory and fans included
_COPIED = 2**26  # bytes: two of them are more than a cache holds
_HAS_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


def machine_called(device: str, table: PriceTable, provider: str | None, threads: int) -> Machine:
    """A device of the table, or `this` machine, with what the table offers of it.

    Raises:
        InvalidInput: the table has no such provider.
        NotFound: it has no such device.
    """
    providers = {offer.provider for offer in table.offers}
    if provider is not None and provider.lower() not in providers:
        raise InvalidInput(f"--provider {provider}: the table has {', '.join(sorted(providers))}")
    if device == "this":
        found = gpu_name(table)
        if found is None:
            return Machine("this CPU", "cpu", this_cpu(threads))
        device = found
    name, known = table.device(device)
    offers = tuple(
        offer
        for offer in table.offers
        if offer.device == name and (provider is None or offer.provider == provider.lower())
    )
    return Machine(name, "cuda", known, offers)


def gpu_name(table: PriceTable) -> str | None:
    """The table's name of the first GPU here; None without one, or with one that is not listed."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode != 0 or not done.stdout.strip():
        return None
    name, _, mib = done.stdout.splitlines()[0].rpartition(",")
    plain = name.replace(" ", "").replace("-", "").lower()
    fitting = [known for known in table.devices if known.split("-")[0].lower() in plain]
    return min(fitting, key=lambda known: abs(table.devices[known].memory_gib - float(mib) / 1024), default=None)


def this_cpu(threads: int) -> Device:
    """This machine's processor; `threads` 0 means every core."""
    used = threads or psutil.cpu_count(logical=False) or 1
    tflops = _flops() / 1e12
    fast = any(flag in Path("/proc/cpuinfo").read_text(encoding="utf-8") for flag in _HAS_BFLOAT16)
    return Device(
        memory_gib=psutil.virtual_memory().total / GIB,
        tflops_bf16=tflops * (1.5 if fast else 0.2),  # without instructions it is emulated, five times slower
        tflops_fp32=tflops,
        bandwidth_gb_s=memory_gb_s(),
        watts=_CPU_WATTS_A_CORE * used,
    )


def _flops() -> float:
    left, right = np.ones((_ROWS, _IN), dtype=np.float32), np.ones((_IN, _OUT), dtype=np.float32)
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return 2 * _ROWS * _IN * _OUT / min(times)


def memory_gb_s() -> float:
    """What one core reads and writes in memory, 10^9 bytes a second: the quickest of some copies."""
    source = np.ones(_COPIED, dtype=np.uint8)
    target = np.empty_like(source)
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - began)
    return 2 * _COPIED / min(times) / 1e9
