"""Running out of memory: telling it from other errors, the next smaller micro-batch, the largest one that fits.

A micro-batch always divides the rows each process sees in a step, so the global batch, and with it what is learned,
never changes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from tuneloop.registry.errors import TuneloopError

Made = TypeVar("Made")
_CPU_ALLOCATOR = ("can't allocate memory", "cannot allocate memory", "not enough memory", "defaultcpuallocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocation that failed, on a GPU or in main memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or any(sign in text for sign in _CPU_ALLOCATOR))


def reason_of(error: BaseException) -> str:
    """What an allocation that failed says of itself, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def give_memory_back() -> None:
    """Free what nothing refers to any more, the GPU's cache included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_SHORTER = "smaller objective.max_prompt_length and max_new_tokens"
_CHECKPOINTED = "run.gradient_checkpointing true, a smaller objective.max_length"
_SHARDED = "run.launch with zero3 and cpu_offload"
_HELPS = {  # by objective: what is left when one row at a time does not fit, cheapest first
    "sft": f"{_CHECKPOINTED}, tuning.method qlora, {_SHARDED}, a smaller base",
    "reward": f"{_CHECKPOINTED}, {_SHARDED}, a smaller base",
    "dpo": f"{_CHECKPOINTED}, tuning.method qlora, {_SHARDED}, a smaller base",
    "grpo": f"run.gradient_checkpointing true, {_SHORTER}, tuning.method qlora, a smaller base",
    "ppo": f"{_SHORTER}, tuning.method qlora, a smaller base",
}


def smaller(micro_batch: int, per_process: int, objective: str = "sft") -> int:
    """The largest divisor of a process's rows that is at most half of `micro_batch`.

    Raises:
        TuneloopError: one row at a time does not fit either; what helps depends on the kind of `objective`.
    """
    if micro_batch == 1:
        raise TuneloopError(f"out of memory with one row at a time; what helps, in this order: {_HELPS[objective]}")
    return max(size for size in range(1, micro_batch // 2 + 1) if per_process % size == 0)


def with_fewer(make: Callable[[int], Made], rows: int, lower: Callable[[str, int], int]) -> Made:
    """What `make` makes of so many rows at a time; from the first again, with fewer, as often as memory is full.

    Args:
        make: takes the rows at a time, on which what it makes does not depend.
        rows: to begin with.
        lower: gets the reason and the rows that did not fit, says the next, or raises.
    """
    while True:
        try:
            return make(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        give_memory_back()  # here, where the error no longer holds on to what did not fit
        rows = lower(reason, rows)


class ValidationStarved(MemoryError):
    """Memory was full while several processes validated together, `rows` at a time."""

    def __init__(self, reason: str, rows: int) -> None:
        super().__init__(reason)
        self.rows = rows


_SHORTEN_VALIDATION = "shorten the rows of data.validation by a smaller objective.max_length, or take a smaller base"


def half_of(rows: int, doing: str = "in validation", helps: str = _SHORTEN_VALIDATION) -> int:
    """Rows to try at a time after so many did not fit.

    Raises:
        TuneloopError: it was one row.
    """
    if rows == 1:
        raise TuneloopError(f"out of memory {doing} with one row at a time: {helps}")
    return rows // 2


def largest_that_fits(per_process: int, fits: Callable[[int], bool]) -> int:
    """The largest micro-batch that fits, by bisection over the divisors of a process's rows.

    Args:
        per_process: rows each process sees in an optimiser step.
        fits: tries the worst-case batch of that many rows; memory grows with it, so the answers are monotone.

    Raises:
        TuneloopError: one row does not fit.
    """
    sizes = [size for size in range(1, per_process + 1) if per_process % size == 0]
    low, high = -1, len(sizes)  # sizes[low] fits, sizes[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low] if low >= 0 else smaller(1, per_process)
