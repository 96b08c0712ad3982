"""What a machine, not a recipe, decides about training."""

from __future__ import annotations

import logging
import os
from decimal import Decimal
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from tuneloop.registry.retraining.states import LONGEST_LEASE_S
from tuneloop.registry.settings import Section


class TrainSettings(Section):
    """`[train]`, `TUNELOOP_TRAIN_…`."""

    section: ClassVar[str] = "train"

    threads: int = Field(default=0, ge=0)  # CPU threads of a run; 0: PyTorch's choice, all cores
    prices: Path | None = None  # devices and prices for `tuneloop plan`; none: tuneloop's own table
    spot: Literal["aws", "gcp", "azure"] | None = None  # whose notices stop a run in order, on a spot machine
    spot_host: str = ""  # the metadata service, where it is not at the provider's usual address


class WorkerSettings(Section):
    """`[worker]`, `TUNELOOP_WORKER_…`."""

    section: ClassVar[str] = "worker"

    id: str = ""  # empty: host name and process id
    poll_s: float = Field(default=5.0, gt=0)  # between looks at an empty queue
    # How long a dead worker's request waits; renewed three times as often.
    lease_s: float = Field(default=60.0, ge=1, le=LONGEST_LEASE_S)
    usd_per_hour: Decimal | None = Field(
        default=None, ge=0, le=1_000_000
    )  # what this machine costs; none: the price table's offer


def share_cores(*, with_an_engine: bool) -> None:
    """How compute threads that wait for each other share the cores; call it before anything imports torch.

    Beside an engine they sleep at once: two threads of matrix products and an engine's on two cores, 90 and 111 a
    second then, 87 and 49 when they spin for a while first. Otherwise they do that: waking them costs more than the
    wait between two small products (steps of a 135M model: 92 and 103 tokens a second against 76, 79 and 89).
    """
    name, value = ("OMP_WAIT_POLICY", "PASSIVE") if with_an_engine else ("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault(name, value)


def hush_libraries() -> None:
    """Keep off the terminal what libraries miss and no run needs; call it before anything imports peft.

    bitsandbytes warns at each import of a kernel for CPUs that the hub would have; it has its own.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


SETTINGS: tuple[type[Section], ...] = (TrainSettings, WorkerSettings)
