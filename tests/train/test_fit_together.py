"""Every objective and method that may train in several processes learns there what it learns in one.

13 rows in batches of 8: the second step sees 5, which two processes of two rows a pass cannot share evenly. Each case
takes several things at once that a recipe may combine; what does not go together is refused (`test_objectives`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from small_base import WORDS, make_small_base
from train.ranks import Together, train_together
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import label_pairs, label_rows
from tuneloop.train.data.labels import LabelledRow, Labeller
from tuneloop.train.data.preference import PreferenceRow
from tuneloop.train.data.rows import Row
from tuneloop.train.fit.progress import Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.fit.trainers import Labelled
from tuneloop.train.recipe import Recipe
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models

STEPS, ROWS, EVEN = 2, 13, 16
LOSS, WEIGHT = 2e-5, 2e-4  # nats, and what a weight may differ by: float32 sums in another order
QLORA = {"method": "qlora", "rank": 4}
EIGHT = {"optimizer": "adamw_8bit"}


@dataclass(frozen=True)
class Case:
    """A recipe's sections, and the strategy that two processes train it by."""

    objective: str
    strategy: str
    tuning: Mapping[str, Any]
    run: Mapping[str, Any]
    optim: Mapping[str, Any]

    def recipe(self, launch: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe, in one process or several."""
        run = {"steps": STEPS, "batch_size": 8, "micro_batch": 2, "dtype": "float32", **self.run}
        return Recipe.model_validate(
            {
                "base": {"model": "small"},
                "data": {"train": "rows.jsonl"},
                "tuning": dict(self.tuning),
                "objective": {"kind": self.objective, "max_length": 64},
                "optim": {"learning_rate": 1e-2, "warmup_ratio": 0.0, "schedule": "constant", **self.optim},
                "run": run | ({"launch": dict(launch)} if launch else {}),
                "evaluate": {"sets": {"held": "held.jsonl"}},
                "publish": {"model": "bot"},
            }
        )


def case(objective: str, strategy: str, tuning: Mapping[str, Any], optim: Mapping[str, Any], **run: Any) -> Any:
    name = "-".join([objective, strategy, tuning.get("method", "lora"), *optim.values(), *run])
    return pytest.param(Case(objective, strategy, tuning, run, optim), id=name)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_small_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows_of(base: Base) -> Callable[..., Labelled]:
    labeller = Labeller(models.load_tokenizer(base), 64)

    def row(n: int, answer: str) -> Row:
        asked = f"please {WORDS[n]} {WORDS[3 * n % 50]}"
        return Row((Message(role="user", content=asked), Message(role="assistant", content=answer)))

    chosen = [row(n, f"{WORDS[n]} good" + " w1" * (n % 4)) for n in range(EVEN)]
    rejected = [row(n, f"bad {WORDS[n + 1]} w3") for n in range(EVEN)]

    @cache
    def labelled(objective: str, count: int = ROWS) -> Labelled:
        if objective == "sft":
            return label_rows(labeller, chosen[:count], "sha256:t")[0]
        pairs = [PreferenceRow(one, other) for one, other in zip(chosen, rejected, strict=True)][:count]
        return label_pairs(labeller, pairs, "sha256:t")[0]

    return labelled


def model_of(recipe: Recipe, base: Base) -> Any:
    seed = recipe.objective.head_seed(recipe.run.seed)
    loader = models.Loader(base, recipe.tuning, recipe.run.dtype, "cpu", "sdpa", seed)
    return loader.tunable(recipe.run.seed, None)


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def alone(
    recipe: Recipe, base: Base, rows: Labelled, *, steps: int = STEPS
) -> tuple[dict[str, dict[int, float]], dict[str, torch.Tensor]]:
    """What one process tells step by step, and the weights it ends with."""
    model, told = model_of(recipe, base), dict[str, dict[int, float]]()

    def log(metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            told.setdefault(name, {})[step] = value

    watch = Watch(Screen(io.StringIO()), log, lambda: None)
    tokenizer = models.load_tokenizer(base)
    fit(model, tokenizer, rows, recipe, device="cpu", steps=steps, validation=[], watch=watch)
    return told, trained(model)


@pytest.mark.parametrize(
    "case",
    [
        case("reward", "ddp", {"rank": 4}, {}),
        case("reward", "zero3", {"rank": 4}, {}, gradient_checkpointing=True),
        case("dpo", "zero2", {"rank": 4, "dora": True}, {}),
        case("dpo", "fsdp", QLORA, {}),
        case("sft", "zero3", QLORA, EIGHT, packing=True),
        case("sft", "fsdp", {"method": "bottleneck", "size": 4}, {}, gradient_checkpointing=True),
        case("sft", "zero2", {"method": "ia3"}, {}, packing=True),
    ],
)
def test_two_processes_learn_what_one_does(
    case: Case, base: Base, rows_of: Callable[..., Labelled], tmp_path: Path
) -> None:
    rows = rows_of(case.objective)
    recipe = case.recipe({"processes": 2, "strategy": case.strategy})
    together = train_together(recipe, base, rows, tmp_path, steps=STEPS)
    told, weights = alone(case.recipe(), base, rows)
    assert together.told("loss") == pytest.approx(told["loss"], abs=LOSS), together.errors[-2000:]
    assert set(told["loss"]) == {1, 2}
    now = trained(together.give_weights(model_of(recipe, base)))
    assert max(float((now[name] - value).abs().max()) for name, value in weights.items()) < WEIGHT
    assert now.keys() == weights.keys()
    assert (case.strategy == "ddp") == ("sharded: this process holds" not in together.said)
    if case.objective != "sft":
        _tells_of_the_pairs_that_teach(together, told)


def test_the_last_step_over_rows_that_are_shared_evenly_tells_of_all_processes(
    base: Base, rows_of: Callable[..., Labelled], tmp_path: Path
) -> None:
    """accelerate must not take the one row that teaches nothing for the length of the last pass."""
    case, rows = Case("reward", "ddp", {"rank": 4}, {}, {}), rows_of("reward", EVEN)
    recipe = case.recipe({"processes": 2})
    together = train_together(recipe, base, rows, tmp_path, steps=STEPS)
    told, _ = alone(case.recipe(), base, rows)
    for name in ("accuracy", "margin"):
        assert together.told(name) == pytest.approx(told[name], abs=LOSS), together.errors[-2000:]


def test_a_sharded_run_that_writes_down_how_it_began_learns_the_same(
    base: Base, rows_of: Callable[..., Labelled], tmp_path: Path
) -> None:
    """Early stopping keeps step 0; torch steps FSDP's optimiser once to write it, which must not count as a step."""
    case, rows = Case("sft", "fsdp", {"rank": 4}, {}, {}), rows_of("sft")
    values = case.recipe({"processes": 2, "strategy": "fsdp"}).model_dump(mode="json", exclude_unset=True)
    values["run"] |= {"validate_every": 1, "early_stopping": {"patience": 2}}
    values["data"]["validation"] = "held.jsonl"
    validation = cast("Sequence[LabelledRow]", rows_of("sft", 2))
    together = train_together(Recipe.model_validate(values), base, rows, tmp_path, steps=STEPS, validation=validation)
    told, weights = alone(case.recipe(), base, rows)
    assert together.told("loss") == pytest.approx(told["loss"], abs=LOSS), together.errors[-2000:]
    now = trained(together.give_weights(model_of(case.recipe(), base)))
    assert max(float((now[name] - value).abs().max()) for name, value in weights.items()) < WEIGHT


@pytest.mark.parametrize(
    ("objective", "strategy", "kept"),
    [("dpo", "zero3", 2), ("sft", "ddp", 2), ("sft", "fsdp", 1), ("sft", "zero2", 1)],
)
def test_a_stop_leaves_the_step_and_what_goes_on_is_the_run_that_was_not_cut(
    base: Base, rows_of: Callable[..., Labelled], tmp_path: Path, objective: str, strategy: str, kept: int
) -> None:
    """Each step is two passes, and one rank alone hears of the stop, after the first; an epoch ends with step 2. What
    dpo is held to is what the adapter was as training began, not what it is when it goes on."""
    case, rows = Case(objective, strategy, {"rank": 4}, {}, {}), rows_of(objective)
    recipe = case.recipe({"processes": 2, "strategy": strategy})
    cut = train_together(recipe, base, rows, tmp_path, steps=kept + 1, stop_at=2 * kept + 1)
    assert cut.events[-1].kind == "stopped", cut.errors[-2000:]
    assert cut.events[-1].text.startswith(f"asked to end; the state after step {kept} is kept")
    together = train_together(recipe, base, rows, tmp_path, steps=kept + 1)
    assert f"resumed after step {kept}" in together.said
    told, weights = alone(case.recipe(), base, rows, steps=kept + 1)
    assert together.told("loss") == {kept + 1: pytest.approx(told["loss"][kept + 1], abs=LOSS)}
    now = trained(together.give_weights(model_of(recipe, base)))
    assert max(float((now[name] - value).abs().max()) for name, value in weights.items()) < WEIGHT


def _tells_of_the_pairs_that_teach(together: Together, told: Mapping[str, Mapping[int, float]]) -> None:
    """One process tells the mean of its passes (2, 2 and 1 pairs), two that of theirs (4 and 1): of pairs alone."""
    for name in ("accuracy", "rewards.accuracies", "margin", "rewards.margins"):
        if name in told:
            assert together.told(name)[1] == pytest.approx(told[name][1], abs=LOSS)
    if "accuracy" in told:
        assert together.told("accuracy")[2] == told["accuracy"][2] == 1.0, "three that teach nothing would be missed"
