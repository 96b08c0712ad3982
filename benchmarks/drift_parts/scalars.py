"""The CUSUM on numbers: is the mean run length what was set, and how far is the delay from the best there can be?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.cusum import DESIGN_SHIFT, Cusum, mean_run_length, threshold_for

REFERENCE = 2_000
SHIFTS = (0.25, 0.5, 1.0, 2.0)
DELAY_RUN_LENGTHS = (1_000, 10_000, 100_000)
_AT_ONCE, _LONGEST = 256, 40  # values fed at once; mean run lengths after which a replay is cut (none should be)
Draw = Callable[[int, np.random.Generator], NDArray[np.float64]]


@dataclass(frozen=True)
class RunLength:
    """What stationary replays gave."""

    stream: str
    reference: int
    asked: int
    mean: float
    standard_error: float
    replays: int


@dataclass(frozen=True)
class Delay:
    """Values from a shift of the mean to the alarm."""

    shift: float  # standard deviations
    run_length: int
    optimum: float  # the exact CUSUM that knows the distribution, the shift and its direction
    tuned: float  # ours, which knows the shift alone
    untuned: float  # ours as it comes, made for half a standard deviation
    standard_error: float  # of the tuned one


def run_lengths(lengths: Sequence[int], replays: int) -> list[RunLength]:
    """Replays of streams in which nothing changes, each against a fresh reference of its own."""
    measured = np.array(lengths, dtype=float)
    streams: dict[str, tuple[int, Draw]] = {
        "normal": (REFERENCE, lambda n, rng: rng.normal(size=n)),
        "gamma, reference of 100": (100, lambda n, rng: rng.gamma(0.7, size=n)),
        "lengths of real texts (ties)": (600, lambda n, rng: rng.choice(measured, n)),
        "rare ones of zeros and ones": (600, lambda n, rng: (rng.random(n) < 0.03).astype(float)),
    }
    found = []
    for asked in (200, 1_000):
        for name, (size, draw) in streams.items():
            waits = np.array([_wait(draw, size, asked, np.random.default_rng([asked, i])) for i in range(replays)])
            error = float(waits.std() / replays**0.5)
            found.append(RunLength(name, size, asked, round(float(waits.mean()), 1), round(error, 1), replays))
    return found


def _wait(draw: Draw, size: int, asked: int, rng: np.random.Generator) -> int:
    cusum = Cusum(draw(size, rng), asked, rng)
    for _ in range(_LONGEST * asked // _AT_ONCE + 1):
        if changes := cusum.feed(draw(_AT_ONCE, rng)):
            return changes[0].at + 1
    raise RuntimeError(f"no false alarm in {_LONGEST} mean run lengths")


def delays(replays: int) -> list[Delay]:
    """Delay of a shift that is there from the first value after the reference."""
    found = []
    for run_length in DELAY_RUN_LENGTHS:
        for shift in SHIFTS:
            best = mean_run_length(threshold_for(run_length, shift, sides=1), shift / 2, shift)
            tuned, untuned = (
                [_delay(shift, run_length, made, i) for i in range(replays)] for made in (shift, DESIGN_SHIFT)
            )
            error = float(np.std(tuned) / replays**0.5)
            values = (best, float(np.mean(tuned)), float(np.mean(untuned)), error)
            found.append(Delay(shift, run_length, *(round(value, 2) for value in values)))
    return found


def _delay(shift: float, run_length: int, made_for: float, seed: int) -> int:
    rng = np.random.default_rng([seed, run_length])
    cusum = Cusum(rng.normal(size=REFERENCE), run_length, rng, made_for)
    while True:
        if changes := cusum.feed(rng.normal(shift, size=64)):
            return changes[0].at + 1


def measure(lengths: Sequence[int], replays: int) -> dict[str, Any]:
    """Both tables."""
    return {
        "run_lengths": [asdict(row) for row in run_lengths(lengths, replays)],
        "delays": [asdict(row) for row in delays(replays)],
    }
