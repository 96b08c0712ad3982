"""What a machine, not a recipe, decides about training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tuneloop.registry.settings import Section


class TrainSettings(Section):
    """`[train]`, `TUNELOOP_TRAIN_…`."""

    section: ClassVar[str] = "train"

    threads: int = Field(default=0, ge=0)  # CPU threads of a run; 0: PyTorch's choice, all cores
    prices: Path | None = None  # devices and prices for `tuneloop plan`; none: tuneloop's own table


class WorkerSettings(Section):
    """`[worker]`, `TUNELOOP_WORKER_…`."""

    section: ClassVar[str] = "worker"

    id: str = ""  # empty: host name and process id
    poll_s: float = Field(default=5.0, gt=0)  # between looks at an empty queue
    lease_s: float = Field(default=60.0, ge=1)  # how long a dead worker's request waits; renewed three times as often


def share_cores() -> None:
    """Let idle compute threads sleep instead of spin; call it before anything imports torch.

    Two threads of bf16 matrix products on two cores: beside a busy engine 65 to 80 a second asleep against 17 to 35
    spinning; alone the two are level (spinning / asleep 1.06, 0.97, 1.09).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


SETTINGS: tuple[type[Section], ...] = (TrainSettings, WorkerSettings)
