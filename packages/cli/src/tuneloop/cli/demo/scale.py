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
    quiet_requests: int  # before the drift
    hold_s: float  # on each step of the canary
    min_samples: int  # answered by the canary at each step
    margin: float  # how much worse feedback may be
    error_margin: float  # how much larger a share of requests may fail
    drift_timeout_s: float
    retrain_timeout_s: float
    test_rows: int  # of each evaluation set
    validation_rows: int
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # changes to the recipe


FULL = Scale(
    quick=False,
    reference=100,
    window=40,
    quiet_requests=146,
    hold_s=10,
    min_samples=5,
    margin=0.15,
    error_margin=0.05,
    drift_timeout_s=300,
    retrain_timeout_s=600,
    test_rows=60,
    validation_rows=32,
)
QUICK = Scale(
    quick=True,
    reference=50,
    window=25,
    quiet_requests=80,
    hold_s=5,
    min_samples=3,
    margin=0.2,
    error_margin=0.15,
    drift_timeout_s=240,
    retrain_timeout_s=400,
    test_rows=30,
    validation_rows=8,
    recipe={
        "run": {"steps": 12, "batch_size": 4, "micro_batch": 4},
        "evaluate": {"generate": 1, "max_new_tokens": 16},
        # Thirty rows bound a difference to about 0.09 nats either way: a smaller margin would be decided by chance.
        "retrain": {"steps": 16, "start_from": "parent", "replay_rows": 60, "margin": 0.1},
    },
)
