"""Fitting a model to its rows: the objective's trainer, with what all of them share round it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, ProgressCallback

from tuneloop.train.data.labels import LabelledRow
from tuneloop.train.fit.arguments import common_arguments
from tuneloop.train.fit.progress import FitResult, Progress, Watch
from tuneloop.train.fit.sft import sft_trainer
from tuneloop.train.recipe import Recipe
from tuneloop.train.tuning.quantised import trained_weights_kept


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
    """Train `model` in place for `steps` optimiser steps.

    Raises:
        TuneloopError: the loss is no longer a number; or whatever `watch.check` raises.
    """
    progress = Progress(tokenizer, steps, validation, watch)
    with tempfile.TemporaryDirectory(prefix="tuneloop-fit-") as scratch:
        arguments = common_arguments(recipe, steps, device, Path(scratch), micro_batch=int(recipe.run.micro_batch))
        with trained_weights_kept(model):
            trainer = sft_trainer(model, tokenizer, rows, recipe.run, arguments, [progress])
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
