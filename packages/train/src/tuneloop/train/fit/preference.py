"""Direct preference optimisation through TRL's DPOTrainer (Rafailov et al. 2305.18290).

Its data pipeline is told to skip: the tokens that were labelled and audited are those that are learned. The reference
is a frozen copy of the adapter as training began (for a fresh one: the base itself), which TRL makes by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from tuneloop.train.data.labels import LabelledPair
from tuneloop.train.fit.by_row import WeighsRowsAlike
from tuneloop.train.fit.guard import Interruptible
from tuneloop.train.fit.order import InEvenOrder
from tuneloop.train.fit.reference import same_reference
from tuneloop.train.recipe import RunSection
from tuneloop.train.recipe.objective import DpoObjective


class _PreparedDpoTrainer(Interruptible, InEvenOrder, WeighsRowsAlike, DPOTrainer):  # type: ignore[misc]  # trl is untyped here
    """DPOTrainer on rows that are tokenised already; it has no switch for that, unlike its kin."""

    def _prepare_dataset(self, dataset: Any, *others: Any) -> Any:  # noqa: ARG002 (TRL's signature)
        return dataset


def dpo_trainer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[LabelledPair],
    objective: DpoObjective,
    run: RunSection,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
) -> DPOTrainer:
    """A trainer over labelled pairs; `arguments` are those every trainer shares."""
    config = DPOConfig(
        **arguments,
        beta=objective.beta,
        activation_checkpointing=run.gradient_checkpointing,
        max_length=None,  # rows were cut, and counted, when they were labelled
    )
    columns = {
        "prompt_ids": [list(pair.chosen.ids[: pair.chosen.prompt_length]) for pair in pairs],
        "chosen_ids": [list(pair.chosen.answer_ids) for pair in pairs],
        "rejected_ids": [list(pair.rejected.answer_ids) for pair in pairs],
    }
    if run.launch.processes > 1:  # one that teaches nothing, see `fit.by_row`
        for name, values in columns.items():
            values.append(columns["prompt_ids"][0][:1] if name == "prompt_ids" else [])
    with same_reference(model):
        trainer = _PreparedDpoTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    trainer.share_evenly(len(pairs), run, config.per_device_train_batch_size)
    return trainer
