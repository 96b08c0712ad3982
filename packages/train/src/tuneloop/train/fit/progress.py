"""What a fit tells while it runs, and how it went: loss, speed, memory and time left to the screen and to MLflow."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from tuneloop.train.evaluation.measure import BATCH
from tuneloop.train.fit.checkpoints import RunState
from tuneloop.train.fit.guard import Guard, WindowLeft
from tuneloop.train.fit.memory import ValidationStarved, half_of, with_fewer
from tuneloop.train.fit.speed import flops_per_token, peak_flops
from tuneloop.train.fit.summary import diagnose
from tuneloop.train.recipe import Recipe
from tuneloop.train.screen import Screen

Validate = Callable[[Any, Callable[[], None], int], float]  # (model, what raises to stop, rows) → nats per token

_SHOWN_LINES = 20  # progress lines kept where the output is no terminal
_GIB = 2**30


@dataclass(frozen=True)
class FitResult:
    """How the fitting went."""

    steps: int
    first_loss: float
    last_loss: float
    seconds: float  # of this process; a resumed run counts its own part
    tokens_per_s: float
    micro_batch: int  # rows per forward pass that fitted
    peak_memory_bytes: int
    weights_step: int  # the step whose weights are the result: the last, or the best with early stopping
    mfu: float | None  # share of the device's peak that was useful work; none where the peak is not known
    notes: tuple[str, ...] = ()  # over-fitting, plateaus, rollbacks, and what helps


@dataclass(frozen=True)
class Watch:
    """Who is told how a run goes, and who may stop it."""

    screen: Screen
    log: Callable[[Mapping[str, float], int], None]  # metrics and their step, to MLflow
    check: Callable[[], None]  # called between batches; raises to stop


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Step by step: the loss to the screen and to MLflow; validation at the start, then as the recipe says."""

    def __init__(
        self,
        recipe: Recipe,
        steps: int,
        validate: Validate | None,
        watch: Watch,
        guard: Guard,
        clock: Callable[[], float],
    ) -> None:
        self._run = recipe.run
        self._steps = steps
        self._validate_with = validate
        self._watch = watch
        self._guard = guard
        self._clock = clock
        self._started = clock()
        self._first_step = 0
        self._tokens = 0.0  # of this process
        self._tokens_before = 0.0
        self._flops_per_token = 0.0
        self._peak_flops = peak_flops()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
        self._first_step = state.global_step
        self._tokens_before = float(state.num_input_tokens_seen)  # GRPO's goes on from the checkpoint's
        self._flops_per_token = flops_per_token(others["model"])
        if self.is_due(state.global_step):  # and, where a run goes on, a stop cut it short
            self._validate(others["model"], state.global_step)
        self._started = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        if self.is_due(state.global_step):
            with suppress(WindowLeft):  # the step is whole: the guard, which is next, keeps it
                self._validate(others["model"], state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:  # noqa: ARG002 (see above)
        if logs is None or "loss" not in logs:  # the last call sums the run up
            return
        step, loss = state.global_step, float(logs["loss"])
        self._tokens = float(logs.get("num_tokens", self._tokens_before)) - self._tokens_before
        elapsed = self._clock() - self._started
        left = elapsed / (step - self._first_step) * (self._steps - step)
        metrics = {
            "loss": loss,
            "learning_rate": logs["learning_rate"],
            "tokens_per_s": self._tokens / elapsed,
            "peak_memory_bytes": float(peak_memory_bytes()),
        }
        if "grad_norm" in logs:
            metrics["grad_norm"] = float(logs["grad_norm"])
        if (mfu := self._mfu(elapsed)) is not None:
            metrics["mfu"] = mfu
        self._watch.log(metrics, step)
        every = max(1, self._steps // _SHOWN_LINES)
        shown = "" if mfu is None else f"  MFU {mfu:.1%}"
        self._watch.screen.progress(
            f"step {step}/{self._steps}  loss {loss:.3f}  {self._tokens / elapsed:,.0f} tokens/s{shown}  "
            f"{peak_memory_bytes() / _GIB:.1f} GiB  {_minutes(left)} left",
            keep=step % every == 0 or step in {1, self._steps},
        )

    def result(self, history: Sequence[Mapping[str, float]], state: RunState, *, weights_step: int) -> FitResult:
        """How it went, from transformers' own history and what the run found out about itself."""
        losses = [entry["loss"] for entry in history if "loss" in entry]
        seconds = max(self._clock() - self._started, 1e-9)
        notes = diagnose(losses, state, self._run)
        for note in notes:
            self._watch.screen.say(f"note: {note}")
        return FitResult(
            steps=len(losses),
            first_loss=losses[0],
            last_loss=losses[-1],
            seconds=seconds,
            tokens_per_s=self._tokens / seconds,
            micro_batch=state.micro_batch,
            peak_memory_bytes=peak_memory_bytes(),
            weights_step=weights_step,
            mfu=self._mfu(seconds),
            notes=notes,
        )

    def is_due(self, step: int) -> bool:
        """Whether validation is wanted after this step, and not known."""
        if self._validate_with is None:
            return False
        every, known = self._run.validate_every, {found.step for found in self._guard.state.validations}
        wanted = step % every == 0 if every else step == self._steps // 2
        return (wanted or step in {0, self._steps}) and step not in known

    def _mfu(self, elapsed_s: float) -> float | None:
        if self._peak_flops is None or not self._tokens:
            return None
        return self._tokens * self._flops_per_token / elapsed_s / self._peak_flops

    def _validate(self, model: Any, step: int) -> None:
        loss = self._validation_loss(model, step)
        self._watch.log({"validation_loss": loss}, step)
        self._watch.screen.say(f"validation loss {loss:.3f} after step {step}")
        if math.isfinite(loss):  # otherwise the step itself is told as diverged
            self._guard.note_validation(step, loss)

    def _validation_loss(self, model: Any, step: int) -> float:
        """Of all rows; from the first again, with half of them at a time, as often as memory is full."""
        validate = self._validate_with
        assert validate is not None, "nothing is due without it"

        def lower(reason: str, rows: int) -> int:
            if not self._run.launch.is_plain:  # the others are in the midst of a pass: all begin anew, with less
                raise ValidationStarved(reason, rows)
            half = half_of(rows)
            self._watch.screen.say(
                f"out of memory in the validation after step {step} ({reason}); going on with it, {half} rows at a time"
            )
            self._guard.note_validation_batch(half)
            return half

        size = self._guard.state.validation_batch or BATCH
        return with_fewer(lambda rows: validate(model, self._guard.between_passes, rows), size, lower)


def peak_memory_bytes() -> int:
    """The most memory this process has held: on the GPU where there is one, in main memory otherwise."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
