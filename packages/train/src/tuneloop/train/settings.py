"""What a machine, not a recipe, decides about training."""

from __future__ import annotations

import os
from typing import ClassVar

from pydantic import Field

from tuneloop.registry.settings import Section


class TrainSettings(Section):
    """`[train]`, `TUNELOOP_TRAIN_…`."""

    section: ClassVar[str] = "train"

    threads: int = Field(default=0, ge=0)  # CPU threads of a run; 0: PyTorch's choice, all cores


class WorkerSettings(Section):
    """`[worker]`, `TUNELOOP_WORKER_…`."""

    section: ClassVar[str] = "worker"

    id: str = ""  # empty: host name and process id
    poll_s: float = Field(default=5.0, gt=0)  # between looks at an empty queue
    lease_s: float = Field(default=60.0, ge=1)  # how long a dead worker's request waits; renewed three times as often


def share_cores() -> None:
    """Let idle compute threads sleep instead of spin; call it before anything imports torch.

    On two cores that also serve a model, spinning made training ten times slower; alone it gains nothing.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


SETTINGS: tuple[type[Section], ...] = (TrainSettings, WorkerSettings)
