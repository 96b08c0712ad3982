"""What a recipe says of memory, speed and the adapter reaches the model, and is not read by the parser alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.autograd.graph import saved_tensors_hooks

from train.fitting import Fits
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import Base
from tuneloop.train.fit.arguments import attention_for
from tuneloop.train.recipe.tuning import BottleneckTuning
from tuneloop.train.tuning import models


@pytest.fixture
def fits(tiny: Base, tiny_recipe: Path, tmp_path: Path) -> Fits:
    return Fits(tiny, tiny_recipe, tmp_path)


def saved_bytes(fits: Fits, **run: Any) -> int:
    """What a forward pass through the blocks keeps for the way back; logits and loss are kept either way."""
    recipe = fits.recipe(**run)
    model, kept, forward = fits.model(recipe), [0], list[int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[0] += tensor.nbytes
        return tensor

    blocks = model.get_base_model().model
    blocks.register_forward_pre_hook(lambda *_: kept.__setitem__(0, 0))
    blocks.register_forward_hook(lambda *_: forward.append(kept[0]))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        fits.fit(recipe, steps=1, model=model)
    assert len(forward) == 2, "micro-batches of a step"
    return max(forward)


def test_gradient_checkpointing_keeps_less_of_the_forward_pass(fits: Fits) -> None:
    assert 0 < saved_bytes(fits, gradient_checkpointing=True) < 0.6 * saved_bytes(fits)


def test_compile_compiles_the_model_that_is_trained_and_only_where_it_is_asked_for(
    fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def spied(model: Any, **_options: Any) -> Any:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", spied)
    recipe = fits.recipe(compile=True)
    model = fits.model(recipe)
    fits.fit(recipe, steps=1, model=model)
    assert [one is model for one in compiled] == [True]
    fits.fit(fits.recipe(), steps=1)
    assert len(compiled) == 1


@pytest.mark.parametrize("rslora", [False, True])
def test_rank_alpha_scaling_and_dropout_stand_on_every_adapted_layer(fits: Fits, rslora: bool) -> None:
    recipe = fits.recipe(tuning={"rank": 9, "alpha": 27, "dropout": 0.25, "rslora": rslora})
    layers = [layer for layer in fits.model(recipe).modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 14, "q, k, v, o, gate, up and down of two layers"
    for layer in layers:
        assert (layer.r["default"], layer.lora_alpha["default"], layer.lora_dropout["default"].p) == (9, 27, 0.25)
        assert layer.scaling["default"] == pytest.approx(27 / (math.sqrt(9) if rslora else 9))


def test_eager_attention_is_what_the_model_computes_with_and_learns_the_same(fits: Fits) -> None:
    recipe = fits.recipe(attention="eager")
    chosen = attention_for(recipe.run, "cpu")
    model = models.Loader(fits.base, recipe.tuning, "float32", "cpu", chosen.value).tunable(seed=0)
    assert (str(chosen), model.config._attn_implementation) == ("eager because the recipe says so", "eager")
    fits.fit(recipe, steps=2, model=model)
    eager = fits.losses
    fits.fit(fits.recipe(), steps=2)
    assert eager == pytest.approx(fits.losses, abs=1e-5)


def test_flash_attention_on_a_cpu_is_refused_with_its_reason(fits: Fits) -> None:
    said = r"run\.attention flash_attention_2 cannot be had: flash attention needs a CUDA device; use auto or sdpa"
    with pytest.raises(InvalidInput, match=said):
        attention_for(fits.recipe(attention="flash_attention_2").run, "cpu")


def test_activations_of_a_bottleneck_learn_each_something_of_their_own(fits: Fits) -> None:
    """A fresh adapter changes nothing whatever it is made of, so the first step's loss is the same.

    The second is, too: the rate of the first is nothing yet.
    """
    learned = {}
    for activation in ("relu", "silu"):
        tuning = BottleneckTuning(method="bottleneck", size=8, activation=activation)
        fits.fit(fits.recipe().model_copy(update={"tuning": tuning}), steps=3)
        learned[activation] = fits.losses
    assert all(math.isfinite(loss) for losses in learned.values() for loss in losses.values())
    assert len({losses[1] for losses in learned.values()}) == 1
    assert len({losses[3] for losses in learned.values()}) == 2
