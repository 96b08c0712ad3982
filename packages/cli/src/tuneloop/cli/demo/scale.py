"""How much of everything the demo does: the full one shows quality, the quick one shows the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """Counts and times of one run; records and requests in numbers, times in seconds."""

    quick: bool
    reference: int  # records the monitor freezes as its reference
    window: int  # records it judges at a time
    mean_run_length: int  # records between false alarms
    quiet_requests: int  # before the drift
    drifting_users: int  # who ask at once while the monitor reads along on the same engine
    hold_s: float  # on each step of the canary
    min_samples: int  # answered by the canary at each step
    margin: float  # how much worse feedback may be
    error_margin: float  # how much larger a share of requests may fail
    max_tokens: int  # of an answer
    drift_timeout_s: float
    retrain_timeout_s: float
    rows: Mapping[str, int]  # split of the example's data → rows kept of each of its files
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # changes to the recipe
    policy: Mapping[str, Any] = field(default_factory=dict)  # changes to the retraining policy


FULL = Scale(
    quick=False,
    reference=100,
    window=40,
    mean_run_length=10_000,
    quiet_requests=146,
    drifting_users=8,
    hold_s=10,
    min_samples=5,
    margin=0.15,
    error_margin=0.05,
    max_tokens=24,
    drift_timeout_s=300,
    retrain_timeout_s=600,
    rows={"test": 60, "validation": 32},
)
QUICK = Scale(
    quick=True,
    reference=60,
    window=40,
    mean_run_length=2_000,
    quiet_requests=102,
    drifting_users=5,
    hold_s=3,
    min_samples=3,
    margin=0.2,
    error_margin=0.15,
    max_tokens=8,
    drift_timeout_s=240,
    retrain_timeout_s=400,
    rows={"test": 30, "validation": 8, "train": 400},
    recipe={
        "run": {"steps": 10, "batch_size": 4, "micro_batch": 4},
        "evaluate": {"generate": 1, "max_new_tokens": 16},
        "retrain": {"steps": 18, "start_from": "parent", "replay_rows": 100},
    },
    policy={"min_rows": 120},  # a fifth is held out, of which the gate needs ten to decide
)
