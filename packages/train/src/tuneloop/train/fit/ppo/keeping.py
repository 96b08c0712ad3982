"""A PPO run's checkpoints: all that its next step depends on, so that a run goes on from them to the bit (on a CPU).

Beside the adapter's and the critic's weights (safetensors) that is the optimiser, the schedule, the random states, the
prompts that wait for their turn and the strength of the KL penalty (a torch file, read with `weights_only`). The store
makes them whole or nothing (`fit.checkpoints`). Until a step is whole the state before it is held in main memory, three
times what is trained, so that a stop need not wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tuneloop.train.fit.checkpoints import CheckpointStore, RunState
from tuneloop.train.fit.guard import RandomState, unwritten
from tuneloop.train.recipe import Recipe

WEIGHTS, _LEARNER = "weights.safetensors", "learner.pt"


@dataclass(frozen=True)
class Learned:
    """How far a run has come; `waiting` are places of prompts."""

    step: int
    kl_coefficient: float
    waiting: tuple[int, ...] = ()
    first_loss: float = 0.0
    last_loss: float = 0.0


@dataclass(frozen=True)
class _Held:
    """A run's state between two steps, in copies of its own."""

    learned: Learned
    weights: dict[str, torch.Tensor]
    rest: dict[str, Any]


class Keeper:
    """Writes down and restores one run's moving parts.

    Args:
        store: where checkpoints live; none: nothing is kept.
        recipe: how often.
        weights: name → parameter, of all that is trained.
        parts: name → optimiser or schedule.
        prompts: the generator that shuffles them.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        store: CheckpointStore | None,
        recipe: Recipe,
        weights: Mapping[str, torch.nn.Parameter],
        parts: Mapping[str, Any],
        prompts: torch.Generator,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._recipe = recipe
        self._weights = weights
        self._parts = parts
        self._prompts = prompts
        self._clock = clock
        self._kept_at = clock()
        self._held: _Held | None = None
        self._written: RunState | None = None  # what the run knew of itself when its state was written, or read, last

    @property
    def keeps(self) -> bool:
        """Whether there is anywhere to write to."""
        return self._store is not None

    @property
    def is_due(self) -> bool:
        """Whether the recipe wants another checkpoint by now."""
        return self.keeps and self._clock() - self._kept_at >= self._recipe.run.checkpoint.every_s

    def begin_anew(self) -> None:
        """Throw away what an earlier run left."""
        if self._store is not None:
            self._store.clear()

    def restore(self) -> tuple[Learned, RunState] | None:
        """Set everything back to the newest whole checkpoint; None, and nothing changed, when there is none."""
        found = self._store.newest_valid() if self._store else None
        if found is None:
            return None
        kept = load_file(found.folder / WEIGHTS)
        with torch.no_grad():
            for name, value in self._weights.items():
                value.copy_(kept[name])
        state = torch.load(found.folder / _LEARNER, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._prompts.set_state(state["prompts"])
        replace(RandomState.now(), cpu=state["random"], cuda=state["random_cuda"]).restore()
        learned = state["learned"]
        self._written = found.state
        return Learned(**learned | {"waiting": tuple(learned["waiting"])}), found.state

    def keep(self, learned: Learned, state: RunState) -> None:
        """Write everything down; `state` is what the run has found out about itself.

        Raises:
            TuneloopError: it cannot be written; checkpoints before it are whole.
        """
        self.hold(learned)
        self.keep_held(state)

    def hold(self, learned: Learned) -> None:
        """Copy everything as it is, between two steps, where there is anywhere to write it to."""
        if self._store is None:
            return
        self._held = None  # before the next is made: both at once would be six times what is trained
        random = RandomState.now()
        rest = {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "prompts": self._prompts.get_state(),
            "random": random.cpu,
            "random_cuda": random.cuda,
            "learned": asdict(learned) | {"waiting": list(learned.waiting)},
        }
        self._held = _Held(learned, _copied(dict(self._weights)), _copied(rest))

    def keep_held(self, state: RunState) -> None:
        """Write down what is held, if that is not written yet; `state` and errors as of `keep`."""
        held = self._held
        if self._store is None or held is None:
            return
        step = held.learned.step
        state = state.model_copy(update={"step": step})
        if state == self._written:
            return
        self._store.discard_staging()
        folder = self._store.staging / f"checkpoint-{step}"
        try:
            folder.mkdir(parents=True)
            save_file(held.weights, folder / WEIGHTS)
            torch.save(held.rest, folder / _LEARNER)
            self._store.seal(folder, state)
        except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch.save on a full disk
            raise unwritten(step, self._store.staging, error) from error
        self._written, self._kept_at = state, self._clock()


def _copied(value: Any) -> Any:
    """The same in main memory, with tensors of its own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(one) for one in value)
    return value
