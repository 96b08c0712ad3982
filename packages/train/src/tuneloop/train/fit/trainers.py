"""Which of TRL's trainers an objective takes, and what each tells of itself beside the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from tuneloop.train.data.labels import LabelledPair, LabelledPrompt, LabelledRow
from tuneloop.train.fit.preference import dpo_trainer
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.reward import reward_trainer
from tuneloop.train.fit.sft import sft_trainer
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import DpoObjective, GrpoObjective, RewardObjective
from tuneloop.train.rewards import Judge

Labelled = Sequence[LabelledRow] | Sequence[LabelledPair] | Sequence[LabelledPrompt]
# TRL's names of what is worth drawing beside the loss.
_TOLD = ("accuracy", "margin", "rewards/accuracies", "rewards/margins", "reward", "reward_std", "kl", "entropy")
_TOLD_OF_EACH = "rewards/"  # GRPO: the mean of every reward function


def trainer_for(
    model: Any,
    tokenizer: Any,
    rows: Any,
    recipe: Recipe,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
    *,
    judge: Judge | None,
    watch: Watch,
) -> Any:
    """The objective's trainer over rows that were labelled for it; PPO has a loop of its own (`fit.ppo`)."""
    objective, run = recipe.objective, recipe.run
    callbacks = [*callbacks, _Telling(watch)]
    if isinstance(objective, RewardObjective):
        return reward_trainer(model, tokenizer, rows, run, arguments, callbacks)
    if isinstance(objective, DpoObjective):
        return dpo_trainer(model, tokenizer, rows, objective, run, arguments, callbacks)
    if isinstance(objective, GrpoObjective):
        from tuneloop.train.fit.grpo import grpo_trainer  # noqa: PLC0415 (TRL's brings MLflow, a second of each process)

        assert judge is not None
        return grpo_trainer(model, tokenizer, rows, objective, judge, run, arguments, callbacks)
    return sft_trainer(model, tokenizer, rows, run, arguments, callbacks)


class _Telling(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """What an objective measures of itself, step by step, to MLflow."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:  # noqa: ARG002 (transformers' signature)
        told = {
            key.replace("/", "."): float(value)
            for key, value in (logs or {}).items()
            if value is not None and (key in _TOLD or (key.startswith(_TOLD_OF_EACH) and key.endswith("/mean")))
        }
        if told and "loss" in (logs or {}):
            self._watch.log(told, state.global_step)
