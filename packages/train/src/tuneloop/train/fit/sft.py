"""Supervised fine-tuning through TRL's SFTTrainer on rows that are already tokenised and masked.

TRL prepares nothing here: its data pipeline is told to skip, so the labels that were audited are those that are
learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tuneloop.train.data.labels import LabelledRow
from tuneloop.train.recipe import RunSection


def sft_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[LabelledRow],
    run: RunSection,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """A trainer over labelled rows; `arguments` are those every trainer shares."""
    config = SFTConfig(
        **arguments,
        activation_checkpointing=run.gradient_checkpointing,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # rows were cut, and counted, when they were labelled
    )
    data = Dataset.from_dict({"input_ids": [list(r.ids) for r in rows], "labels": [list(r.labels) for r in rows]})
    return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
