"""Supervised fine-tuning through TRL's SFTTrainer on rows that are already tokenised and masked.

TRL prepares nothing here: its data pipeline is told to skip, so the labels that were audited are those that are
learned.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.evaluate import pad_token_id, score_rows
from tuneloop.train.labels import LabelledRow
from tuneloop.train.recipe import Recipe, RunSection
from tuneloop.train.screen import Screen
from tuneloop.train.statistics import mean_nll

_SHOWN_LINES = 20  # progress lines kept where the output is no terminal


@dataclass(frozen=True)
class FitResult:
    """How the fitting went."""

    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    tokens_per_s: float


@dataclass(frozen=True)
class Watch:
    """Who is told how a run goes, and who may stop it."""

    screen: Screen
    log: Callable[[Mapping[str, float], int], None]  # metrics and their step, to MLflow
    check: Callable[[], None]  # called between batches; raises to stop


def planned_steps(run: RunSection, rows: int) -> int:
    """Optimiser steps a run takes over this many rows."""
    return run.steps or math.ceil((run.epochs or 0) * math.ceil(rows / run.batch_size))


def fit(
    model: Any,
    tokenizer: Any,
    rows: Sequence[LabelledRow],
    recipe: Recipe,
    *,
    device: str,
    steps: int,
    validation: Sequence[LabelledRow],
    watch: Watch,
) -> FitResult:
    """Train the adapter on `model` in place for `steps` optimiser steps.

    Raises:
        TuneloopError: the loss is no longer a number; or whatever `watch.check` raises.
    """
    data = Dataset.from_dict({"input_ids": [list(r.ids) for r in rows], "labels": [list(r.labels) for r in rows]})
    progress = _Progress(tokenizer, steps, validation, watch)
    with tempfile.TemporaryDirectory(prefix="tuneloop-fit-") as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_arguments(recipe, steps, device, Path(scratch)),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        started = time.monotonic()
        # Autocast casts a bfloat16 run's float32 adapter by itself; PEFT's own casts of every input beside it cost a
        # quarter of a step's time and change nothing.
        amp = recipe.run.dtype == "bfloat16"
        with disable_input_dtype_casting(model) if amp else nullcontext():
            trainer.train()
        seconds = time.monotonic() - started
    losses = progress.losses
    return FitResult(len(losses), losses[0], losses[-1], seconds, progress.tokens / seconds)


def _arguments(recipe: Recipe, steps: int, device: str, scratch: Path) -> SFTConfig:
    run, optim = recipe.run, recipe.optim
    return SFTConfig(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=run.micro_batch,
        gradient_accumulation_steps=run.batch_size // run.micro_batch,
        learning_rate=optim.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(optim.schedule, optim.schedule),
        warmup_steps=math.ceil(optim.warmup_ratio * steps),
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        bf16=run.dtype == "bfloat16",
        activation_checkpointing=run.gradient_checkpointing,
        seed=run.seed,
        data_seed=run.seed,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # rows were cut, and counted, when they were labelled
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )


class _Progress(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Step by step: the loss to the screen and to MLflow, validation at the start, the middle and the end."""

    def __init__(self, tokenizer: Any, steps: int, validation: Sequence[LabelledRow], watch: Watch) -> None:
        self.losses: list[float] = []
        self.tokens = 0.0
        self._pad_id = pad_token_id(tokenizer)
        self._steps = steps
        self._validation = validation
        self._watch = watch
        self._started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
        self._validate(others["model"], 0)
        self._started = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self._watch.check()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002 (see above)
        self._watch.check()
        if state.global_step in {self._steps // 2, self._steps}:
            self._validate(others["model"], state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:  # noqa: ARG002 (see above)
        if logs is None or "loss" not in logs:  # the last call sums the run up
            return
        step, loss = state.global_step, float(logs["loss"])
        self.tokens = float(logs["num_tokens"])
        elapsed = time.monotonic() - self._started
        rate, left = self.tokens / elapsed, elapsed / step * (self._steps - step)
        self._watch.log(
            {
                "loss": loss,
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
                "tokens_per_s": rate,
            },
            step,
        )
        if not math.isfinite(loss):
            raise TuneloopError(f"step {step}: the loss is {loss}; lower optim.learning_rate, or use run.dtype float32")
        self.losses.append(loss)
        every = max(1, self._steps // _SHOWN_LINES)
        self._watch.screen.progress(
            f"step {step}/{self._steps}  loss {loss:.3f}  {rate:,.0f} tokens/s  {_minutes(left)} left",
            keep=step % every == 0 or step in {1, self._steps},
        )

    def _validate(self, model: Any, step: int) -> None:
        if not self._validation:
            return
        loss = mean_nll(score_rows(model, self._validation, pad_id=self._pad_id, check=self._watch.check))
        self._watch.log({"validation_loss": loss}, step)
        self._watch.screen.say(f"validation loss {loss:.3f} after step {step}")


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
