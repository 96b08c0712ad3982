"""Reward models: the base with one output, trained on preferences through TRL's RewardTrainer, and asked for scores.

The output is read at the last token of question and answer, which is the answer's end-of-turn. transformers finds it as
the last one that is no padding: so rows are padded with another token than that, or the end would never be read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import Base
from tuneloop.train.data.labels import LabelledPair
from tuneloop.train.evaluation.measure import BATCH, padded
from tuneloop.train.fit.by_row import WeighsRowsAlike
from tuneloop.train.fit.guard import Interruptible
from tuneloop.train.fit.order import InEvenOrder
from tuneloop.train.recipe import RunSection
from tuneloop.train.tuning import models

MANIFEST = "reward_model.json"  # what tells a reward model's folder from any other adapter's


class _Trainer(Interruptible, InEvenOrder, WeighsRowsAlike, RewardTrainer):  # type: ignore[misc]  # trl is untyped here
    """RewardTrainer whose checkpoints are whole and whose rows weigh alike."""


def reward_trainer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[LabelledPair],
    run: RunSection,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
) -> RewardTrainer:
    """A trainer over labelled pairs; `arguments` are those every trainer shares."""
    config = RewardConfig(
        **arguments,
        activation_checkpointing=run.gradient_checkpointing,
        max_length=None,  # rows were cut, and counted, when they were labelled
    )
    padding = copy.deepcopy(tokenizer)
    padding.pad_token = padding_token(tokenizer)
    chosen, rejected = sides(pairs)
    if run.launch.processes > 1:  # one that teaches nothing, see `fit.by_row`
        chosen, rejected = [*chosen, chosen[0][:1]], [*rejected, chosen[0][:1]]
    data = Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})
    trainer = _Trainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=padding,
        callbacks=callbacks,
    )
    trainer.share_evenly(len(pairs), run, config.per_device_train_batch_size)
    return trainer


def sides(pairs: Sequence[LabelledPair]) -> tuple[list[list[int]], list[list[int]]]:
    """Chosen and rejected as the reward model reads them: question and answer up to its end-of-turn token."""
    both = [(pair.chosen, pair.rejected) for pair in pairs]
    chosen, rejected = zip(*both, strict=True)
    return tuple(  # type: ignore[return-value]  # two lists
        [[*row.ids[: row.prompt_length], *row.answer_ids] for row in side] for side in (chosen, rejected)
    )


def padding_token(tokenizer: Any) -> str:
    """A token that can fill up a row without being mistaken for its end.

    Raises:
        InvalidInput: the tokenizer has no special token but its end-of-sequence one.
    """
    for token in (tokenizer.pad_token, *tokenizer.all_special_tokens):
        if token is not None and token != tokenizer.eos_token:
            return str(token)
    raise InvalidInput(
        "the base's tokenizer has no special token beside its end-of-sequence one, and a reward model needs one to "
        "fill rows up with; set pad_token in its config"
    )


class RewardModel:
    """A reward model, asked for scores in batches of like length."""

    def __init__(self, model: Any, tokenizer: Any, *, amp: bool) -> None:
        self._model = model
        self._pad = int(tokenizer.convert_tokens_to_ids(padding_token(tokenizer)))
        self._amp = amp

    def scores(
        self, ids: Sequence[Sequence[int]], *, batch: int = BATCH, check: Callable[[], None] = lambda: None
    ) -> list[float]:
        """One score for each sequence of question and answer, in their order; `batch` of them a forward pass, before
        each of which `check` is called: it raises to stop."""
        model = self._model
        was_training = model.training
        model.eval()
        model.config.get_text_config().pad_token_id = self._pad
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        found: dict[int, float] = {}
        for start in range(0, len(order), batch):
            check()
            chosen = order[start : start + batch]
            longest = max(len(ids[index]) for index in chosen)
            rows = padded([ids[index] for index in chosen], longest, self._pad).to(model.device)
            mask = padded([[1] * len(ids[index]) for index in chosen], longest, 0).to(model.device)
            with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=self._amp):
                made = model(input_ids=rows, attention_mask=mask, use_cache=False).logits[:, 0]
            found.update(zip(chosen, made.float().tolist(), strict=True))
        model.train(was_training)
        return [found[index] for index in range(len(ids))]


def write_manifest(folder: Path, base: Base) -> None:
    """Mark a folder as a reward model's, and say for which base and template."""
    content = {"base": base.name, "base_digest": base.digest, "template_digest": base.template_digest}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_reward_folder(folder: Path, base: Base, name: str) -> None:
    """Refuse what is no reward model of this base and template.

    Raises:
        InvalidInput: it is not; the message says why.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InvalidInput(
            f"objective.reward_model {name}: {folder} holds no {MANIFEST}; train it with objective reward"
        )
    made_for = json.loads(path.read_text(encoding="utf-8"))
    for key, wanted in (("base_digest", base.digest), ("template_digest", base.template_digest)):
        if made_for[key] != wanted:
            raise InvalidInput(
                f"objective.reward_model {name}: it was trained with {key} {made_for[key][:19]}… and this run's is "
                f"{wanted[:19]}…: it would score text in a form it never saw; train it with the same base and template"
            )


def load_reward_model(
    folder: Path, base: Base, tokenizer: Any, *, dtype: str, device: str, attention: str
) -> RewardModel:
    """A published reward model, ready to score; a second copy of the base's weights in memory."""
    bare = models.load_reward_base(base, dtype=dtype, device=device, attention=attention, seed=0)
    model = models.load_adapter(bare, folder, trainable=False)
    return RewardModel(model, tokenizer, amp=dtype == "bfloat16")
