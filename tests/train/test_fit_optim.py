"""Each key of `optim` does what it says, and so does `run.compile`: seen in the rates, the weights and the losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from train.fitting import Fits
from tuneloop.train.base import Base
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.tuning import FullTuning
from tuneloop.train.tuning import models

STEPS, WARMUP = 8, 2


@pytest.fixture
def fits(tiny: Base, tiny_recipe: Path, tmp_path: Path) -> Fits:
    return Fits(tiny, tiny_recipe, tmp_path)


def recipe(fits: Fits, **optim: Any) -> Recipe:
    values = fits.recipe().model_dump(exclude_unset=True)
    return Recipe.model_validate(values | {"optim": {"learning_rate": 1e-2, **optim}})


def moved(fits: Fits, one: Recipe) -> dict[str, torch.Tensor]:
    """How far training moved each trained weight."""
    model = fits.model(one)
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    fits.fit(one, steps=3, model=model)
    return {name: value.detach() - before[name] for name, value in model.named_parameters() if name in before}


def size(weights: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in weights.values()))


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        ("constant", lambda _progress: 1.0),
        ("linear", lambda progress: 1.0 - progress),
        ("cosine", lambda progress: (1.0 + math.cos(math.pi * progress)) / 2),
    ],
)
def test_the_rate_warms_up_and_follows_its_schedule(schedule: str, share: Any, fits: Fits) -> None:
    fits.fit(recipe(fits, schedule=schedule, warmup_ratio=WARMUP / STEPS), steps=STEPS)
    after = [min(1.0, n / WARMUP) * (share((n - WARMUP) / (STEPS - WARMUP)) if n > WARMUP else 1) for n in range(STEPS)]
    assert [fits.rates[step] for step in range(1, STEPS + 1)] == pytest.approx([1e-2 * one for one in after])


def test_weight_decay_pulls_towards_nothing_and_clipping_holds_a_step_back(fits: Fits) -> None:
    plain = moved(fits, recipe(fits, schedule="constant", warmup_ratio=0.0))
    decayed = moved(fits, recipe(fits, schedule="constant", warmup_ratio=0.0, weight_decay=1.0))
    towards = {name: decayed[name] - plain[name] for name in plain if "lora_A" in name}
    began = {name: value.detach() for name, value in fits.model(recipe(fits)).named_parameters() if name in towards}
    pulled = sum(float((towards[name] * began[name]).sum()) for name in towards)
    assert pulled == pytest.approx(-0.03 * size(began) ** 2, rel=0.2), "three steps, each of rate × decay"
    clipped = moved(fits, recipe(fits, schedule="constant", warmup_ratio=0.0, max_grad_norm=1e-12))
    assert size(clipped) < 1e-3 * size(plain), "gradients under Adam's epsilon move nothing"


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_of_8_bits_learns_what_the_whole_one_does(optimizer: str, fits: Fits) -> None:
    """On all weights: bitsandbytes leaves the state of tensors of fewer than 4,096 as it is."""
    learned = {}
    for name in ("adamw", optimizer):
        one = recipe(fits, optimizer=name, learning_rate=1e-3)
        one = one.model_copy(update={"tuning": FullTuning(method="full")})
        fits.fit(one, steps=5, model=models.Loader(fits.base, one.tuning, "float32", "cpu", "sdpa").tunable(seed=0))
        learned[name] = fits.losses
    assert learned[optimizer] == pytest.approx(learned["adamw"], rel=2e-2)
    assert learned[optimizer] != learned["adamw"], "its rounding shows, or it was never used"


@pytest.mark.filterwarnings("ignore")  # the tracer touches everything it meets, and is warned of half of it
def test_compiled_steps_learn_what_plain_ones_do(shallow: Base, tiny_recipe: Path, tmp_path: Path) -> None:
    fits = Fits(shallow, tiny_recipe, tmp_path)
    rows = fits.labelled()
    assert len({len(row.ids) for row in rows[:12]}) > 1
    fits.fit(fits.recipe(), steps=3, rows=rows)
    plain = fits.losses
    fits.fit(fits.recipe(compile=True), steps=3, rows=rows)
    assert fits.losses == pytest.approx(plain, abs=1e-4)
