"""What every trainer of TRL is told alike, from the recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.choice import Choice
from tuneloop.train.fit.zero import sharding_arguments
from tuneloop.train.recipe import OptimSection, Recipe, RunSection
from tuneloop.train.tuning.models import choose_attention

_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def attention_for(run: RunSection, device: str) -> Choice[str]:
    """The recipe's attention, or the best that runs here.

    Raises:
        InvalidInput: flash attention was asked for where it cannot run.
    """
    best = choose_attention(device, run.dtype)
    if run.attention == "auto":
        return best
    if run.attention == "flash_attention_2" and best.value != run.attention:
        raise InvalidInput(f"run.attention flash_attention_2 cannot be had: {best.reason}; use auto or sdpa")
    return Choice(run.attention, "the recipe says so")


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
        "gradient_accumulation_steps": run.batch_size // run.launch.processes // micro_batch,
        "optim": _OPTIMIZERS[optim.optimizer],
        "torch_compile": run.compile,
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
        **sharding_arguments(run, device),
    }
