"""What holds of supervised fine-tuning holds of every objective that goes through TRL: the split of a batch changes
nothing, and a killed run that goes on is the run that was never killed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from small_base import WORDS, make_small_base
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import label_pairs, label_prompts
from tuneloop.train.data.labels import Labeller
from tuneloop.train.data.preference import PreferenceRow, PromptRow
from tuneloop.train.data.rows import Row
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe
from tuneloop.train.rewards import Answer, Judge
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"kind": "dpo", "max_length": 64},
    "reward": {"kind": "reward", "max_length": 64},
    "grpo": {
        "kind": "grpo",
        "rewards": ["even"],
        "answers": 4,
        "max_prompt_length": 32,
        "max_new_tokens": 4,
        "kl_coefficient": 0.01,
    },
}


class Killed(BaseException):
    """As abrupt as a signal: nothing on the way may catch it."""


def even(answers: Sequence[Answer]) -> list[float]:
    return [sum(token % 2 == 0 for token in answer.ids) / len(answer.ids) for answer in answers]


@dataclass
class Fit:
    """Fits of one objective on a small real model."""

    base: Base
    kind: str
    losses: dict[int, float] = field(default_factory=dict)  # of the last fit, by step

    @cached_property
    def tokenizer(self) -> Any:
        return models.load_tokenizer(self.base)

    def recipe(self, **run: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "base": {"model": "small"},
                "data": {"train": "rows.jsonl"},
                "tuning": {"rank": 4},
                "objective": dict(OBJECTIVES[self.kind]),
                "optim": {"learning_rate": 1e-2},
                "run": {"steps": 5, "batch_size": 8, "micro_batch": 4, "dtype": "float32", **run},
                "evaluate": {"sets": {"held": "held.jsonl"}},
                "publish": {"model": "bot"},
            }
        )

    def rows(self, count: int) -> Any:
        labeller = Labeller(self.tokenizer, 64)
        if self.kind == "grpo":
            asked = [PromptRow((Message(role="user", content=WORDS[n]),), {}) for n in range(count)]
            return label_prompts(labeller, asked, 32, self.base.template_digest)[0]
        said = [
            PreferenceRow(spoken(WORDS[n], f"{WORDS[n]} good"), spoken(WORDS[n], f"bad {WORDS[n + 1]} w3"))
            for n in range(count)
        ]
        return label_pairs(labeller, said, self.base.template_digest)[0]

    def model(self) -> Any:
        recipe = self.recipe()
        reward_seed = 0 if self.kind == "reward" else None
        loader = models.Loader(self.base, recipe.tuning, "float32", "cpu", "sdpa", reward_seed=reward_seed)
        return loader.tunable(seed=0)

    def fit(self, recipe: Recipe, rows: Any, *, die_in: int | None = None, model: Any = None, **others: Any) -> Any:
        """Train; die in the middle of a step when told to."""
        self.losses = {}

        def log(metrics: Mapping[str, float], step: int) -> None:
            if "loss" in metrics:
                self.losses[step] = metrics["loss"]
                if step == die_in:
                    raise Killed

        model = model or self.model()
        fit(
            model,
            self.tokenizer,
            rows,
            recipe,
            device="cpu",
            steps=5,
            validation=[],
            watch=Watch(Screen(io.StringIO()), log, lambda: None),
            judge=Judge({"even": even}),
            **others,
        )
        return model


def spoken(question: str, answer: str) -> Row:
    return Row((Message(role="user", content=f"please {question}"), Message(role="assistant", content=answer)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_small_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def of(base: Base) -> Callable[[str], Fit]:
    return lambda kind: Fit(base, kind)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_batch_8_is_4_by_2_is_1_by_8_with_a_partial_last_window(kind: str, of: Callable[[str], Fit]) -> None:
    """13 pairs: each second step sees 5, which split into 4 and 1; the one must not count as much as the four."""
    one = of(kind)
    rows, found = one.rows(13), {}
    for micro_batch in (8, 4, 1):
        one.fit(one.recipe(micro_batch=micro_batch), rows)
        found[micro_batch] = list(one.losses.values())
    assert len(found[8]) == 5
    assert found[4] == pytest.approx(found[8], abs=2e-5)
    assert found[1] == pytest.approx(found[8], abs=2e-5)


@pytest.mark.parametrize("kind", ["dpo", "reward", "grpo"])
def test_resumed_equals_uninterrupted_to_the_bit(kind: str, of: Callable[[str], Fit], tmp_path: Path) -> None:
    """10 rows in batches of 8: an epoch ends inside what is left to do when the run goes on."""
    one = of(kind)
    rows, recipe = one.rows(10), one.recipe(checkpoint={"every_s": 1e-9, "keep": 2})
    theirs = one.fit(recipe, rows).state_dict()
    whole = one.losses
    store = CheckpointStore(tmp_path / "checkpoints", 2, lambda _line: None)
    with pytest.raises(Killed):
        one.fit(recipe, rows, store=store, die_in=3)
    ours = one.fit(recipe, rows, store=store, resume=True).state_dict()
    assert one.losses == {step: loss for step, loss in whole.items() if step >= 3}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
