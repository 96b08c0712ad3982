"""What a machine, not a recipe, decides about training."""

from __future__ import annotations

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


SETTINGS: tuple[type[Section], ...] = (TrainSettings, WorkerSettings)
