"""What watches over a fit between steps: checkpoints by the clock, orderly stops, divergence, the random state.

`Interruptible` goes before a Trainer in its bases (`class X(Interruptible, SFTTrainer)`) and makes a checkpoint that
cannot be written one clear error. `Guard` is the callback. With several processes rank 0 decides and the others hear
through main memory, so that no device is waited for.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers import TrainerCallback

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.fit.checkpoints import Checkpoint, CheckpointStore, RunState, Validated
from tuneloop.train.fit.divergence import Diverged, judge_step
from tuneloop.train.recipe import RunSection
from tuneloop.train.stopping import Stopped


class Interruptible:
    """Mixed in before a transformers Trainer: a checkpoint is written whole, or is one clear error."""

    guard: Guard | None = None
    drawn: Sequence[int] = ()  # the rows of the step by number, of a trainer that draws them in an order of its own

    def between_passes(self) -> None:
        """For where one of the trainer's passes is made of many; raises `WindowLeft` for a stop."""
        if self.guard is not None:
            self.guard.between_passes()

    def create_model_card(self, *_args: Any, **_values: Any) -> None:
        """TRL writes one with each checkpoint; a checkpoint is no model to share, and the card costs seconds."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]  # the Trainer that follows in the bases
        except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch.save on a full disk
            if type(error) is RuntimeError and is_parallel():  # or another process that is gone: worth a new start
                raise
            raise unwritten(trainer.state.global_step, Path(trainer.args.output_dir), error) from error


@dataclass(frozen=True)
class RandomState:
    """Python's, NumPy's and PyTorch's generators at one moment."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: list[torch.Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """Of this process."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Set this process's generators back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


class WindowLeft(Exception):
    """What is under way, if anything, is thrown away: a stop came between two passes, or no step is left to take."""


class Guard(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Checkpoints by the clock, orderly stops, divergence before anything is saved.

    Args:
        store: where checkpoints go.
        state: what is known as this attempt begins.
        run: how often to write, when a step counts as diverged, when validation has lost patience.
        durable: whether checkpoints outlive this process; otherwise only those are written that this one may need.
        check: raises when the run shall end; `Stopped` ends after the pass it is in, with the state of the last whole
            step, anything else ends at once.
        name_step: names the rows of a step; gets those that the trainer drew itself, if it does.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        store: CheckpointStore,
        state: RunState,
        *,
        run: RunSection,
        durable: bool,
        check: Callable[[], None],
        name_step: Callable[[int, Sequence[int]], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self.stopped: Stopped | None = None
        self.updating = False  # the optimiser is changing weights: nothing may be saved from here
        self.random = RandomState.now()
        self.trainer: Any = None
        self.sealed_step: int | None = None  # of the last checkpoint that was written
        self._store = store
        self._run = run
        self._durable = durable
        self._check = check
        self._name_step = name_step
        self._clock = clock
        self._saved_at = clock()
        self._losses: list[float] = []
        self._improved = False
        self._learned = False  # what a run that goes on should not have to find out again
        self._group: Any = None  # of several processes, over which flags go from rank 0 to the others

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss."""
        return self.state.best_step

    @property
    def has_lost_patience(self) -> bool:
        """Whether validation has failed to fall as often as the recipe allows."""
        early = self._run.early_stopping
        return early is not None and strikes(self.state.validations, early.min_delta) >= early.patience

    def note_validation(self, step: int, loss: float) -> None:
        """Remember a validation loss; the best is saved at this step's end where the recipe stops early."""
        known = [point.loss for point in self.state.validations]
        self._improved = self._run.early_stopping is not None and (not known or loss < min(known))
        found = (*self.state.validations, Validated(step=step, loss=loss))
        self.state = self.state.model_copy(update={"validations": found})

    def note_validation_batch(self, rows: int) -> None:
        """Remember how many rows at a time fit into validation; written down at this step's end."""
        self.state = self.state.model_copy(update={"validation_batch": rows})
        self._learned = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
        self._losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        set_peak_rate(others["optimizer"], others["lr_scheduler"], self.state.learning_rate)
        stops_early = self._run.early_stopping is not None and bool(self.state.validations)
        if state.global_step == 0 and (stops_early or self._run.divergence.action == "rollback"):
            self.save_now()  # what it began as may be the best there is, or the only way back
            self._improved = False
        if state.global_step == 0 and getattr(self.trainer, "is_fsdp_enabled", False):
            others["optimizer"].state.clear()  # torch steps a sharded AdamW once to write it down, or to read it
        (ends,) = self._agreed(state.global_step > 0 and self._ends(state))
        if ends:  # a validation that a stop had cut short was all that was left; transformers would take one step more
            raise WindowLeft

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self.random = RandomState.now()

    def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self.between_passes()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self.updating = True

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self.updating = False
        self.random = RandomState.now()
        self._look_for_a_stop()
        durable, ends = self._durable, self._ends(state)
        due = self._clock() - self._saved_at >= self._run.checkpoint.every_s
        wanted = (durable or self._run.divergence.action == "rollback") and due
        save = wanted or self._improved or (durable and (ends or self._learned))
        stop, save, ends = self._agreed(self.stopped is not None, save, ends)
        control.should_save = save or (stop and durable)
        control.should_training_stop = stop or ends
        self._improved = self._learned = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:  # noqa: ARG002 (see above)
        if logs is None or "loss" not in logs:
            return
        loss = float(logs["loss"])
        reason = judge_step(loss, logs.get("grad_norm"), self._losses, self._run.divergence)
        if reason is not None:
            raise Diverged(state.global_step, reason, self._name_step(state.global_step, self.trainer.drawn))
        self._losses.append(loss)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self._seal(state.global_step)

    def between_passes(self) -> None:
        """Leave what is under way if the run shall stop: a long step, or validation, would outlast a machine's notice.

        Raises:
            WindowLeft: on all processes in the same place.
        """
        self._look_for_a_stop()
        (stop,) = self._agreed(self.stopped is not None)
        if stop:
            self.stopped = self.stopped or Stopped("stopped with the process that leads")
            raise WindowLeft

    def save_now(self, **changes: Any) -> Checkpoint | None:
        """Write the state as it is; outside the trainer's own moments."""
        self.state = self.state.model_copy(update=changes)
        self.trainer._save_checkpoint(self.trainer.model, None)
        return self._seal(self.trainer.state.global_step)

    def _ends(self, state: Any) -> bool:
        """Whether the run is over after this step of transformers' state."""
        return state.global_step >= state.max_steps or self.has_lost_patience

    def _look_for_a_stop(self) -> None:
        try:
            self._check()
        except Stopped as reason:
            self.stopped = reason

    def _agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Rank 0's flags, on every rank."""
        if not is_parallel():
            return flags
        self._group = self._group or dist.new_group(backend="gloo")
        said = torch.tensor(flags, dtype=torch.uint8)
        dist.broadcast(said, src=0, group=self._group)
        return tuple(bool(flag) for flag in said.tolist())

    def _seal(self, step: int) -> Checkpoint | None:
        """Every rank has written its part; rank 0 makes it a checkpoint."""
        self.state = self.state.model_copy(update={"step": step})
        self._saved_at = self._clock()
        self.sealed_step = step
        if is_parallel():
            dist.barrier()
        made = None
        if leads():
            try:
                made = self._store.seal(self._store.staging / f"checkpoint-{step}", self.state, self.best_step)
            except OSError as error:
                raise unwritten(step, self._store.staging, error) from error
        if is_parallel():
            dist.barrier()
        return made


def strikes(validations: Sequence[Validated], min_delta: float) -> int:
    """How many of the last validations did not fall at least `min_delta` below the lowest before them."""
    best, count = float("inf"), 0
    for point in validations:
        if point.loss < best - min_delta:
            best, count = point.loss, 0
        else:
            count += 1
    return count


def is_parallel() -> bool:
    """Whether this process is one of several that train together."""
    return bool(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def leads() -> bool:
    """Whether this process is the one of all that writes: rank 0, or the only one."""
    return not is_parallel() or bool(dist.get_rank() == 0)


def set_peak_rate(optimizer: Any, scheduler: Any, rate: float) -> None:
    """Let the schedule peak at `rate`: what a checkpoint restores is the rate it was written with."""
    inner = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    if not hasattr(inner, "lr_lambdas") or all(known == rate for known in inner.base_lrs):
        return
    inner.base_lrs = [rate] * len(inner.base_lrs)
    now = [rate * factor(inner.last_epoch) for factor in inner.lr_lambdas]
    inner._last_lr = now
    for group, value in zip(optimizer.param_groups, now, strict=True):
        group["initial_lr"], group["lr"] = rate, value


def unwritten(step: int, folder: Path, error: Exception) -> TuneloopError:
    """What to say of a checkpoint that could not be written; what there is of it goes."""
    shutil.rmtree(folder, ignore_errors=True)
    return TuneloopError(
        f"the checkpoint of step {step} could not be written to {folder.parent}: {error}; those before it are whole: "
        "free disk space, then resume"
    )
