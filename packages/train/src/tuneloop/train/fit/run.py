"""Fitting a model to its rows: the objective's trainer, with what all of them share round it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, ProgressCallback

from tuneloop.train.data.labels import LabelledPrompt, LabelledRow
from tuneloop.train.fit.arguments import common_arguments
from tuneloop.train.fit.ppo.loop import fit_ppo
from tuneloop.train.fit.progress import FitResult, Progress, Watch
from tuneloop.train.fit.reference import release_reference
from tuneloop.train.fit.trainers import Labelled, trainer_for
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import PpoObjective
from tuneloop.train.rewards import Judge
from tuneloop.train.tuning import models


def fit(
    model: Any,
    tokenizer: Any,
    rows: Labelled,
    recipe: Recipe,
    *,
    device: str,
    steps: int,
    validation: Sequence[LabelledRow],
    watch: Watch,
    judge: Judge | None = None,
) -> FitResult:
    """Train `model` in place for `steps` optimiser steps, on rows that were labelled for the recipe's objective.

    `judge` rewards answers; the objectives that learn from the policy's own answers need one.

    Raises:
        TuneloopError: the loss is no longer a number; or whatever `watch.check` raises.
    """
    if isinstance(recipe.objective, PpoObjective):
        assert judge is not None
        prompts = cast("Sequence[LabelledPrompt]", rows)
        return fit_ppo(model, tokenizer, prompts, recipe, device=device, steps=steps, judge=judge, watch=watch)
    progress = Progress(tokenizer, steps, validation, watch)
    with tempfile.TemporaryDirectory(prefix="tuneloop-fit-") as scratch:
        arguments = common_arguments(recipe, steps, device, Path(scratch), micro_batch=int(recipe.run.micro_batch))
        trainer = trainer_for(model, tokenizer, rows, recipe, arguments, [progress], judge=judge, watch=watch)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        started = time.monotonic()
        # Autocast casts a bfloat16 run's float32 adapter by itself; PEFT's own casts of every input beside it cost a
        # quarter of a step's time and change nothing.
        amp = recipe.run.dtype == "bfloat16"
        with disable_input_dtype_casting(model) if amp else nullcontext(), models.peft_as_it_is():
            trainer.train()
        seconds = time.monotonic() - started
    release_reference(model)
    losses = progress.losses
    return FitResult(len(losses), losses[0], losses[-1], seconds, progress.tokens / seconds)
