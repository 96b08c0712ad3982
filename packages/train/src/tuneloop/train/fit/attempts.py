"""A fit through TRL, and everything that may happen to it: stops, kills, full memory, divergence.

An attempt is one life of a TRL trainer. What ends it early (memory, divergence) becomes a checkpoint and a changed
`RunState`, and the next attempt goes on from there with the same data order and random state; so every way back is the
one that resuming a killed run uses too.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from peft import LoraModel
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.fit.arguments import common_arguments
from tuneloop.train.fit.checkpoints import Checkpoint, CheckpointStore, RunState
from tuneloop.train.fit.divergence import Diverged, lowered, name_rows
from tuneloop.train.fit.guard import Guard, WindowLeft, is_parallel, leads, unwritten
from tuneloop.train.fit.memory import give_memory_back, is_out_of_memory, reason_of, smaller
from tuneloop.train.fit.order import rows_of_step
from tuneloop.train.fit.progress import FitResult, Progress, Validate, Watch
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import GrpoObjective
from tuneloop.train.tuning.peft_adapters import peft_as_it_is

Build = Callable[[dict[str, Any], list[TrainerCallback]], Any]  # (arguments, callbacks) → an `Interruptible` trainer


@dataclass(frozen=True)
class Fitting:
    """One fit: what every objective shares.

    Args:
        recipe: the run.
        device: `cpu` or `cuda`.
        steps: optimiser steps.
        rows: how many rows there are to learn from.
        micro_batch: rows per forward pass on each process to begin with.
        watch: who is told, and who may stop it.
        store: where checkpoints live; none: in a scratch folder, for as long as this process lives.
        resume: go on from the newest whole checkpoint of `store`; otherwise what it holds is thrown away, so that no
            way back leads into another run.
        places: where each row came from, to name those of a bad batch.
        validate: the validation loss of a model as it is, in nats per token, calling what raises to stop before each
            pass, of so many rows at most; none without validation rows.
        clock: seconds that only rise.
        validation_batch: rows of validation at a time, where more did not fit.
    """

    recipe: Recipe
    device: str
    steps: int
    rows: int
    micro_batch: int
    watch: Watch
    store: CheckpointStore | None = None
    resume: bool = False
    places: Sequence[str] = ()
    validate: Validate | None = None
    clock: Callable[[], float] = time.monotonic
    validation_batch: int | None = None

    def name_step(self, step: int, drawn: Sequence[int] = ()) -> str:
        """`; its rows: …`, or nothing where no row's place is known; `drawn` are those of a trainer's own order."""
        if not self.places:
            return ""
        if drawn:
            return name_rows(self.places, drawn, what="questions")
        run = self.recipe.run
        return name_rows(self.places, rows_of_step(step, self.rows, run.batch_size, run.seed))


def see_through(model: Any, build: Build, fitting: Fitting) -> FitResult:
    """Train to the last step, whatever happens on the way; `fit` says what is raised."""
    with ExitStack() as held:
        store = fitting.store
        if store is None:
            scratch = held.enter_context(tempfile.TemporaryDirectory(prefix="tuneloop-fit-"))
            store = CheckpointStore(Path(scratch), 1, fitting.watch.screen.say)
        adapted = isinstance(getattr(model, "base_model", None), LoraModel)
        answers = isinstance(fitting.recipe.objective, GrpoObjective)
        if fitting.recipe.run.dtype == "bfloat16" and adapted and not answers:
            # Autocast casts a bfloat16 run's float32 adapter by itself; PEFT's own casts of every input beside it cost
            # a quarter of a step's time and change nothing. A trainer that lets the model answer does so without it.
            held.enter_context(disable_input_dtype_casting(model))
        held.enter_context(peft_as_it_is())
        return _Attempts(build, fitting, store).go()


class _Attempts:
    """Attempt after attempt until the last step."""

    def __init__(self, build: Build, fitting: Fitting, store: CheckpointStore) -> None:
        self._build = build
        self._fitting = fitting
        self._store = store
        self._say = fitting.watch.screen.say

    def go(self) -> FitResult:
        fitting = self._fitting
        if not fitting.resume:
            self._store.clear()
        checkpoint = self._store.newest_valid()
        state = RunState(
            micro_batch=fitting.micro_batch,
            learning_rate=fitting.recipe.learning_rate.value,
            validation_batch=fitting.validation_batch,
        )
        if checkpoint is not None:
            state = checkpoint.state.with_no_more_than(fitting.micro_batch, fitting.validation_batch)
            self._say(f"resumed after step {state.step} with micro-batch {state.micro_batch}")
        while True:
            trainer, guard, progress = self._attempt(state)
            trouble = self._train(trainer, guard, progress, checkpoint)
            if trouble is None:
                break
            checkpoint, state = self._way_back(trouble, guard, checkpoint)
            del trainer, guard, progress
            give_memory_back()
        kept = self._take_the_best(trainer, guard)
        self._clean_up()
        if guard.stopped is not None:
            step = trainer.state.global_step
            raise guard.stopped.kept(step) if step or guard.state.rollbacks else guard.stopped
        return progress.result(trainer.state.log_history, guard.state, weights_step=kept)

    def _clean_up(self) -> None:
        """Once every process has ended its training: transformers' last act is to look through the folder."""
        if is_parallel():
            dist.barrier()
        if leads():
            self._store.discard_staging()

    def _attempt(self, state: RunState) -> tuple[Any, Guard, Progress]:
        fitting, run = self._fitting, self._fitting.recipe.run
        if leads():  # the others may have begun to look for what this one makes there
            self._store.discard_staging()
        guard = Guard(
            self._store,
            state,
            run=run,
            durable=fitting.store is not None,
            check=fitting.watch.check,
            name_step=fitting.name_step,
            clock=fitting.clock,
        )
        progress = Progress(fitting.recipe, fitting.steps, fitting.validate, fitting.watch, guard, fitting.clock)
        arguments = common_arguments(
            fitting.recipe, fitting.steps, fitting.device, self._store.staging, micro_batch=state.micro_batch
        )
        arguments["learning_rate"] = state.learning_rate
        trainer = self._build(arguments, [progress, guard])
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        guard.trainer, trainer.guard = trainer, guard
        return trainer, guard, progress

    def _train(
        self, trainer: Any, guard: Guard, progress: Progress, checkpoint: Checkpoint | None
    ) -> Diverged | str | None:
        """Train; what went wrong, if something did that there is a way back from."""
        if checkpoint is not None and self._is_finished(guard, progress, checkpoint.state.step):
            trainer._load_from_checkpoint(str(checkpoint.folder))
            trainer.state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
            return None
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        except Diverged as error:
            return error
        except WindowLeft:
            self._keep_the_last_step(guard, checkpoint)
        except (RuntimeError, MemoryError) as error:
            plain = self._fitting.recipe.run.launch.is_plain
            if not is_out_of_memory(error) or not plain:  # the launcher starts all ranks anew with less
                raise
            return reason_of(error)
        return None

    def _is_finished(self, guard: Guard, progress: Progress, step: int) -> bool:
        """Whether after this step nothing is left to do: a stop may have cut the last validation short."""
        return guard.has_lost_patience or (step >= self._fitting.steps and not progress.is_due(step))

    def _keep_the_last_step(self, guard: Guard, checkpoint: Checkpoint | None) -> None:
        """A window was left for a stop: the state as its step before it ended, where that is not written yet."""
        trainer = guard.trainer
        trainer.model.zero_grad(set_to_none=True)
        written = {guard.sealed_step, checkpoint.state.step if checkpoint else 0}  # as it began it can begin again
        if self._fitting.store is not None and trainer.state.global_step not in written:
            guard.random.restore()
            guard.save_now()

    def _way_back(
        self, trouble: Diverged | str, guard: Guard, checkpoint: Checkpoint | None
    ) -> tuple[Checkpoint | None, RunState]:
        if isinstance(trouble, Diverged):
            return self._roll_back(trouble, guard)
        return self._with_less_memory(trouble, guard, checkpoint)

    def _with_less_memory(
        self, error: str, guard: Guard, checkpoint: Checkpoint | None
    ) -> tuple[Checkpoint | None, RunState]:
        """Half the rows at a time from the step that did not fit, its window begun anew."""
        run, state = self._fitting.recipe.run, guard.state
        trainer = guard.trainer
        step = trainer.state.global_step
        size = smaller(state.micro_batch, run.batch_size // run.launch.processes, self._fitting.recipe.objective.kind)
        self._say(
            f"out of memory in step {step + 1} ({error}); going on with micro-batch {size} and "
            f"{run.batch_size // run.launch.processes // size} accumulated, batch size {run.batch_size} as before"
        )
        trainer.model.zero_grad(set_to_none=True)
        give_memory_back()
        if guard.updating:
            found = self._store.newest_valid()
            if found is None:
                raise TuneloopError(
                    f"out of memory while the optimiser changed weights in step {step + 1}, and there is no checkpoint "
                    f"from before; set run.micro_batch to {size} or optim.optimizer to adamw_8bit"
                )
            changed = _with_what_was_learned(found.state, state.model_copy(update={"micro_batch": size}))
            return self._with(changed, found), changed
        if checkpoint is not None and step == checkpoint.state.step:
            changed = state.model_copy(update={"micro_batch": size})
            return self._with(changed, checkpoint), changed
        guard.random.restore()
        made = guard.save_now(micro_batch=size)
        return made, guard.state

    def _roll_back(self, error: Diverged, guard: Guard) -> tuple[Checkpoint | None, RunState]:
        recipe = self._fitting.recipe
        rules = recipe.run.divergence
        lower = lowered(error, rules, guard.state, recipe.objective.kind)
        found = self._store.newest_valid()
        if found is None:
            raise TuneloopError(f"{error}; there is no whole checkpoint to roll back to") from None
        changed = _with_what_was_learned(found.state, lower)
        self._say(
            f"{error}; rolled back to step {found.state.step} with learning rate {changed.learning_rate:.3g} "
            f"({changed.rollbacks} of {rules.max_rollbacks})"
        )
        return self._with(changed, found), changed

    def _with(self, changed: RunState, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint with what was learned since, which then holds whatever ends the run before the next."""
        if is_parallel():
            dist.barrier()  # all have found it: while another takes its place there is none of this step, for a moment
        if leads():
            again = self._store.staging / "again"
            try:
                shutil.copytree(checkpoint.folder, again)
                self._store.seal(again, changed, changed.best_step)
            except OSError as error:
                raise unwritten(changed.step, again, error) from error
        if is_parallel():
            dist.barrier()
        return Checkpoint(checkpoint.folder, changed)

    def _take_the_best(self, trainer: Any, guard: Guard) -> int:
        """With early stopping, the weights of the lowest validation loss are the result; the step whose they are."""
        best, early, last = guard.best_step, self._fitting.recipe.run.early_stopping, int(trainer.state.global_step)
        if early is None or guard.stopped is not None or best is None or best == last:
            return last
        found = self._store.at(best)
        if found is None:
            self._say(f"the checkpoint of step {best}, the best one, is gone; the last weights are kept instead")
            return last
        if self._fitting.recipe.run.launch.is_plain:  # otherwise the launcher takes the weights from the checkpoint
            trainer._load_from_checkpoint(str(found.folder))
        self._say(f"the weights of step {best} are kept: its validation loss is the lowest")
        return best


def _with_what_was_learned(kept: RunState, now: RunState) -> RunState:
    """An earlier state, to go on from with what the run has found out since: how much fits, and at which rate."""
    found_out = now.model_dump(include={"learning_rate", "rollbacks", "micro_batch", "validation_batch"})
    return kept.model_copy(update=found_out)
