"""What every trainer of TRL is told alike, from the recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tuneloop.train.recipe import OptimSection, Recipe, RunSection


def planned_steps(run: RunSection, rows: int) -> int:
    """Optimiser steps a run takes over this many rows."""
    return run.steps or math.ceil((run.epochs or 0) * math.ceil(rows / run.batch_size))


def schedule_arguments(optim: OptimSection, steps: int) -> tuple[str, int]:
    """The schedule by transformers' name, and its warm-up steps."""
    kind = {"constant": "constant_with_warmup"}.get(optim.schedule, optim.schedule)
    return kind, math.ceil(optim.warmup_ratio * steps)


def common_arguments(recipe: Recipe, steps: int, device: str, scratch: Path, *, micro_batch: int) -> dict[str, Any]:
    """Keyword arguments of `transformers.TrainingArguments` and its kin.

    Args:
        recipe: the run.
        steps: optimiser steps.
        device: `cpu` or `cuda`.
        scratch: where the trainer may write.
        micro_batch: rows per forward pass on each process.
    """
    run, optim = recipe.run, recipe.optim
    schedule, warmup = schedule_arguments(optim, steps)
    return {
        "output_dir": str(scratch),
        "max_steps": steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": run.batch_size // micro_batch,
        "learning_rate": recipe.learning_rate.value,
        "lr_scheduler_type": schedule,
        "warmup_steps": warmup,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.max_grad_norm,
        "bf16": run.dtype == "bfloat16",
        "seed": run.seed,
        "data_seed": run.seed,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device != "cpu",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
