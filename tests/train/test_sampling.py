"""Answers to learn from are drawn from the probabilities they are weighed by, and end where an engine would end them.

Bases bring a generation config (a repetition penalty, min-p, several end tokens) that generate() fills in by itself.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from train.ppo_bench import Bench, make_bench
from tuneloop.train.fit.ppo.rollout import Actor, roll_out
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe
from tuneloop.train.rewards import Answer, Judge
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("sampling"))


def by_ppo(bench: Bench, model: Any) -> list[Answer]:
    torch.manual_seed(3)
    actor = Actor(model.eval(), torch.nn.Linear(32, 1), 1.0, nullcontext)
    made = roll_out(actor, bench.tokenizer, bench.prompts, max_new_tokens=8, micro_batch=16, check=lambda: None)
    return list(made.answers)


def by_grpo(bench: Bench, model: Any) -> list[Answer]:
    seen: list[Answer] = []

    def heard(answers: Sequence[Answer]) -> list[float]:
        seen.extend(answers)
        return [float(len(answer.ids)) for answer in answers]

    values = bench.recipe.model_dump(exclude_unset=True)
    values["objective"] = {"kind": "grpo", "rewards": ["heard"], "answers": 4, "max_new_tokens": 8}
    values["run"] |= {"batch_size": 16, "micro_batch": 16}
    watch = Watch(Screen(io.StringIO()), lambda _metrics, _step: None, lambda: None)
    recipe, judge = Recipe.model_validate(values), Judge({"heard": heard})
    fit(
        model,
        bench.tokenizer,
        bench.prompts,
        recipe,
        device="cpu",
        steps=1,
        validation=[],
        watch=watch,
        judge=judge,
    )
    return seen


@pytest.mark.parametrize("sample", [by_ppo, by_grpo])
def test_what_the_base_says_about_sampling_changes_no_answer_but_where_it_ends(bench: Bench, sample: Any) -> None:
    def asked(**generation: Any) -> list[Answer]:
        bare = copy.deepcopy(bench.bare)
        for name, value in generation.items():
            setattr(bare.generation_config, name, value)
        answers: list[Answer] = sample(bench, models.new_adapter(bare, bench.recipe.tuning, seed=0))
        assert all(getattr(bare.generation_config, name) == value for name, value in generation.items())
        return answers

    plain = asked()
    assert asked(repetition_penalty=5.0, min_p=0.3, no_repeat_ngram_size=1) == plain
    other = plain[0].ids[0]
    ended = asked(eos_token_id=[bench.tokenizer.eos_token_id, other])[0]
    assert (ended.ids, ended.finished) == ((other,), True)
