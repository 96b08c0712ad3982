"""Fitting a model to rows that were labelled for its objective: PPO by its own loop, everything else through TRL.

All of it is seen through whatever happens: stops, kills, full memory, divergence; what TRL trains by `attempts`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from transformers import TrainerCallback

from tuneloop.train.data.labels import LabelledPrompt, LabelledRow
from tuneloop.train.evaluation.measure import pad_token_id, score_rows
from tuneloop.train.evaluation.statistics import mean_nll
from tuneloop.train.fit.attempts import Fitting, see_through
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.ppo.loop import fit_ppo
from tuneloop.train.fit.progress import FitResult, Watch
from tuneloop.train.fit.reference import release_reference
from tuneloop.train.fit.sft import choose_micro_batch
from tuneloop.train.fit.trainers import Labelled, trainer_for
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import PpoObjective
from tuneloop.train.rewards import Judge
from tuneloop.train.tuning.quantised import trained_weights_kept


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
    store: CheckpointStore | None = None,
    resume: bool = False,
    places: Sequence[str] = (),
    micro_batch: int | None = None,
    validation_batch: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    clock: Callable[[], float] = time.monotonic,
) -> FitResult:
    """Train `model` in place for `steps` optimiser steps.

    `Fitting` says what the arguments mean. `judge` rewards answers, for the objectives that learn from the policy's
    own; `micro_batch` and `validation_batch` bound what a checkpoint or the recipe says, and `callbacks` are told what
    transformers' Trainer tells its own.

    Raises:
        Stopped: `watch.check` asked for it; the state is in `store`.
        TuneloopError: the run diverged or one row does not fit into memory; or whatever else `watch.check` raises.
    """
    if isinstance(recipe.objective, PpoObjective):
        assert judge is not None
        prompts = cast("Sequence[LabelledPrompt]", rows)
        return fit_ppo(
            model,
            tokenizer,
            prompts,
            recipe,
            device=device,
            steps=steps,
            judge=judge,
            watch=watch,
            store=store,
            resume=resume,
            micro_batch=micro_batch,
            clock=clock,
        )
    pad_id = pad_token_id(tokenizer)

    def validate(model: Any, check: Callable[[], None], batch: int) -> float:
        return mean_nll(score_rows(model, validation, pad_id=pad_id, check=check, batch=batch))

    def build(arguments: dict[str, Any], own: list[TrainerCallback]) -> Any:
        with trained_weights_kept(model):
            return trainer_for(model, tokenizer, rows, recipe, arguments, [*callbacks, *own], judge=judge, watch=watch)

    fitting = Fitting(
        recipe,
        device,
        steps,
        len(rows),
        micro_batch or choose_micro_batch(model, rows, recipe, device, watch.screen),
        watch,
        store,
        resume,
        places,
        validate if validation else None,
        clock,
        validation_batch,
    )
    try:
        return see_through(model, build, fitting)
    finally:
        release_reference(model)
