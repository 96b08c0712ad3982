"""PPO on a small model with a reward that anyone can verify, one call a run, for tests of what may happen to it."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from small_base import WORDS, make_small_base
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import label_prompts
from tuneloop.train.data.labels import LabelledPrompt, Labeller
from tuneloop.train.data.preference import PromptRow
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.reward import RewardModel, load_reward_model
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe, load_recipe
from tuneloop.train.rewards import Answer, Judge
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models


def even_share(answers: Sequence[Answer]) -> list[float]:
    """The share of an answer's tokens with an even id."""
    return [sum(token % 2 == 0 for token in answer.ids) / len(answer.ids) for answer in answers]


EVEN = Judge({"even": even_share})
RECIPE = """\
base: {{model: {base}}}
data: {{train: questions.jsonl}}
tuning: {{rank: 8}}
objective: {{kind: ppo, rewards: even, max_prompt_length: 64, max_new_tokens: 8, kl_coefficient: 0.02, target_kl: null}}
optim: {{learning_rate: 1e-2, schedule: constant}}
run: {{steps: 40, batch_size: 32, micro_batch: 32, dtype: float32}}
evaluate: {{sets: {{held: questions.jsonl}}}}
publish: {{model: bot}}
"""


@dataclass
class Bench:
    """A small model, and questions to it; each run begins with the same adapter."""

    recipe: Recipe
    base: Base
    tokenizer: Any
    prompts: list[LabelledPrompt]
    bare: Any  # read once
    said: list[str] = field(default_factory=list)

    def with_run(self, objective: Mapping[str, Any] | None = None, **run: Any) -> Bench:
        """The same with other keys in `run`, and in `objective`."""
        values = self.recipe.model_dump(exclude_unset=True)
        values["run"] |= run
        values["objective"] |= objective or {}
        return replace(self, recipe=Recipe.model_validate(values), said=[])

    def run(
        self,
        steps: int,
        *,
        check: Callable[[], None] = lambda: None,
        told: Callable[[int], None] = lambda _: None,
        before: Callable[[Any, int], None] = lambda *_: None,
        judge: Judge = EVEN,
        **changes: Any,
    ) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        """(metrics of each step this run took, the adapter's weights); `before` hears (model, rows) of each pass."""
        bare = copy.deepcopy(self.bare)
        model = models.new_adapter(bare, self.recipe.tuning, seed=0)
        seen: list[dict[str, float]] = []
        stream = io.StringIO()
        probes = iter(range(2))  # whether the adapter is fresh is asked of it first

        def heard(_module: Any, _args: Any, values: dict[str, torch.Tensor]) -> None:
            if next(probes, None) is None:
                before(model, len(values["input_ids"]))

        bare.register_forward_pre_hook(heard, with_kwargs=True)

        def log(metrics: Mapping[str, float], step: int) -> None:
            seen.append(dict(metrics) | {"step": step})
            told(step)

        try:
            fit(
                model,
                self.tokenizer,
                self.prompts,
                self.recipe,
                device="cpu",
                steps=steps,
                validation=[],
                watch=Watch(Screen(stream), log, check),
                judge=judge,
                **changes,
            )
        finally:
            self.said[:] = stream.getvalue().splitlines()
        return seen, {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def make_bench(folder: Path) -> Bench:
    base = make_small_base(folder / "base")
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base.folder))
    recipe = load_recipe(folder / "recipe.yaml", check_paths=False).recipe
    tokenizer = models.load_tokenizer(base)
    asked = [
        PromptRow((Message(role="user", content=" ".join(WORDS[n : n + 1 + n % 3])),), place=f"questions.jsonl:{n + 1}")
        for n in range(16)
    ]
    prompts, _ = label_prompts(Labeller(tokenizer, 96), asked, 64, base.template_digest)
    bare = models.load_base(base, dtype="float32", device="cpu", attention="sdpa")
    return Bench(recipe, base, tokenizer, list(prompts), bare)


def steps_of(seen: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Without what depends on the clock."""
    return [{name: value for name, value in one.items() if name != "tokens_per_s"} for one in seen]


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether the weights are those, to the bit."""
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


def each_step_is_due(bench: Bench) -> Callable[[], float]:
    """A clock by which a checkpoint is due after each step."""
    seconds = itertools.count(step=bench.recipe.run.checkpoint.every_s + 1)
    return lambda: float(next(seconds))


def spoil(model: Any) -> None:
    """Make the first trained weights no numbers."""
    next(value for value in model.parameters() if value.requires_grad).data.fill_(float("nan"))


def load_scorer(bench: Bench, folder: Path) -> RewardModel:
    """A reward model on the bench's base, whose adapter has learned nothing."""
    bare = models.load_reward_base(bench.base, dtype="float32", device="cpu", attention="sdpa", seed=1)
    models.new_adapter(bare, bench.recipe.tuning, 0).save_pretrained(folder)
    return load_reward_model(folder, bench.base, bench.tokenizer, dtype="float32", device="cpu", attention="sdpa")
