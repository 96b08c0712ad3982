"""What stands still until somebody acts: paused rollouts, rollouts and bandits without a controller, held retrainings.

The monitor finds these at every pass, because nothing else that runs looks at all of them, and a controller that is
not there cannot say so. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tuneloop.registry.experiments.cadence import due_s
from tuneloop.registry.experiments.declaration import Experiment
from tuneloop.registry.nouns import RetrainingRequest, RetrainingState
from tuneloop.registry.rollouts.rollout import Rollout, RolloutState

WaitsFor = Literal["person", "budget"]  # a budget lets it go on by itself when its day is over


@dataclass(frozen=True)
class Waiting:
    """Retraining requests that wait for the same."""

    requests: int
    oldest_s: float  # since the oldest was filed


@dataclass(frozen=True)
class Standing:
    """What is open and does not go on, by model."""

    rollouts: Mapping[tuple[str, RolloutState], int]  # every open one
    due_s: Mapping[str, float]  # each bandit that steps by itself: for how long nobody has seen to a step that is due
    undriven_s: Mapping[str, float]  # each running one: for how long no controller has held it; 0 while one does
    waiting: Mapping[tuple[str, WaitsFor], Waiting]


def standing(
    rollouts: Sequence[Rollout], experiments: Sequence[Experiment], requests: Sequence[RetrainingRequest], now: datetime
) -> Standing:
    """Sort open rollouts, running experiments and open requests by what they wait for."""
    filed: defaultdict[tuple[str, WaitsFor], list[datetime]] = defaultdict(list)
    for request in requests:
        if (waits_for := _waits_for(request, now)) is not None:
            filed[request.model, waits_for].append(request.created_at)
    return Standing(
        Counter((rollout.model, rollout.state) for rollout in rollouts),
        {one.model: due for one in experiments if (due := due_s(one, now)) is not None},
        {r.model: _undriven_s(r, now) for r in rollouts if r.state is RolloutState.RUNNING},
        {key: Waiting(len(times), (now - min(times)).total_seconds()) for key, times in filed.items()},
    )


def _waits_for(request: RetrainingRequest, now: datetime) -> WaitsFor | None:
    if request.state is RetrainingState.PROPOSED:
        return "person"
    held = request.state is RetrainingState.QUEUED and request.held_until is not None and request.held_until > now
    return "budget" if held else None


def _undriven_s(rollout: Rollout, now: datetime) -> float:
    """Since its lease ran out, or, without one, since it was declared, resumed or let go."""
    return max(0.0, (now - (rollout.lease_until or rollout.updated_at)).total_seconds())
