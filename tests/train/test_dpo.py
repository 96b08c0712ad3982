"""DPO learns from the tokens that were labelled, against the model as it was."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from small_base import WORDS, make_small_base
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import label_pairs
from tuneloop.train.data.labels import LabelledPair, Labeller
from tuneloop.train.data.preference import PreferenceRow
from tuneloop.train.data.rows import Row
from tuneloop.train.evaluation.preference import by_likelihood
from tuneloop.train.fit.arguments import common_arguments
from tuneloop.train.fit.preference import dpo_trainer
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import DpoObjective
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models

RECIPE = Recipe.model_validate(
    {
        "base": {"model": "small"},
        "data": {"train": "pairs.jsonl"},
        "tuning": {"rank": 4},
        "objective": {"kind": "dpo", "max_length": 64},
        "optim": {"learning_rate": 1e-2, "schedule": "constant"},
        "run": {"steps": 15, "batch_size": 8, "micro_batch": 8, "dtype": "float32"},
        "evaluate": {"sets": {"held": "held.jsonl"}},
        "publish": {"model": "bot"},
    }
)


def row(question: str, answer: str) -> Row:
    return Row((Message(role="user", content=question), Message(role="assistant", content=answer)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_small_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokenizer(base: Base) -> Any:
    return models.load_tokenizer(base)


@pytest.fixture
def model(base: Base) -> Any:
    bare = models.load_base(base, dtype="float32", device="cpu", attention="sdpa")
    return models.new_adapter(bare, RECIPE.tuning, seed=0)


@pytest.fixture(scope="module")
def pairs(tokenizer: Any) -> list[LabelledPair]:
    rows = [
        PreferenceRow(
            row(f"please {WORDS[n]}", f"{WORDS[n]} good"), row(f"please {WORDS[n]}", f"bad {WORDS[n + 1]} w3")
        )
        for n in range(16)
    ]
    return label_pairs(Labeller(tokenizer, 64), rows, "sha256:t")[0]


def test_dpo_prefers_what_was_chosen_and_leaves_base_and_adapter_clean(
    model: Any, tokenizer: Any, pairs: list[LabelledPair]
) -> None:
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    seen: list[dict[str, float]] = []
    watch = Watch(Screen(io.StringIO()), lambda metrics, _step: seen.append(dict(metrics)), lambda: None)
    before = by_likelihood(model, pairs, pad_id=0, check=lambda: None)
    made = fit(model, tokenizer, pairs, RECIPE, device="cpu", steps=15, validation=[], watch=watch)
    after = by_likelihood(model, pairs, pad_id=0, check=lambda: None)
    assert made.first_loss == pytest.approx(math.log(2), abs=1e-3)  # policy and reference are the same at first
    assert made.last_loss < 0.4
    assert sum(after.margins) > sum(before.margins) + len(pairs)
    assert after.accuracy.estimate == 1.0
    assert any("rewards.accuracies" in metrics for metrics in seen)
    assert list(model.peft_config) == ["default"]
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_dpo_sees_the_labelled_tokens_and_learns_the_end(
    model: Any, tokenizer: Any, pairs: list[LabelledPair], tmp_path: Path
) -> None:
    arguments = common_arguments(RECIPE, 1, "cpu", tmp_path, micro_batch=8)
    assert isinstance(RECIPE.objective, DpoObjective)
    trainer = dpo_trainer(model, tokenizer, pairs[:1], RECIPE.objective, RECIPE.run, arguments, [])
    batch = trainer.data_collator([trainer.train_dataset[0]])
    for side, ids, learned in zip(
        (pairs[0].chosen, pairs[0].rejected), batch["input_ids"], batch["completion_mask"], strict=True
    ):
        whole = len(side.prompt_length * (0,) + side.answer_ids)
        assert ids[:whole].tolist() == list(side.ids[: side.prompt_length] + side.answer_ids)
        assert learned.tolist()[:whole] == [0] * side.prompt_length + [1] * len(side.answer_ids)
        assert ids[learned.bool()][-1] == tokenizer.eos_token_id


def test_a_second_trainer_on_the_same_model_keeps_the_first_ones_reference(
    model: Any, tokenizer: Any, pairs: list[LabelledPair], tmp_path: Path
) -> None:
    """After full memory or a rollback a new trainer goes on: its reference is where training began, not where it is."""
    arguments = common_arguments(RECIPE, 1, "cpu", tmp_path, micro_batch=8)
    assert isinstance(RECIPE.objective, DpoObjective)
    dpo_trainer(model, tokenizer, pairs, RECIPE.objective, RECIPE.run, arguments, [])
    began = {name: value.clone() for name, value in model.named_parameters() if ".ref." in name}
    assert began
    for name, value in model.named_parameters():
        if ".default." in name:
            value.data.add_(1.0)
    dpo_trainer(model, tokenizer, pairs, RECIPE.objective, RECIPE.run, arguments, [])
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in began.items())
