"""Fits of the tiny model, one call each, for tests of what may happen to a fit."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import label_rows
from tuneloop.train.data.labels import LabelledRow, Labeller
from tuneloop.train.data.rows import read_rows
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.fit.progress import FitResult, Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.recipe import Recipe, load_recipe
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models

Hook = Callable[[int, int], None]  # (rows in the forward pass, how many passes before it)


@cache
def tokenizer_of(base: Base) -> Any:
    """Read once: parsing it takes longer than a step of the tiny model."""
    return models.load_tokenizer(base)


@dataclass
class Fits:
    """The tiny model, its rows and a recipe that each fit may change."""

    base: Base
    recipe_path: Path
    folder: Path
    said: list[str] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)  # of the last fit, by step
    rates: dict[int, float] = field(default_factory=dict)  # likewise
    norms: dict[int, float] = field(default_factory=dict)  # likewise, of the gradients

    def recipe(self, *, tuning: Mapping[str, Any] | None = None, **run: Any) -> Recipe:
        """The recipe with other values in `run`, as strict as from a file."""
        values = load_recipe(self.recipe_path).recipe.model_dump(exclude_unset=True)
        values["run"] = {**values["run"], **run}
        values["tuning"] = {**values["tuning"], **(tuning or {})}
        return Recipe.model_validate(values)

    def labelled(self, name: str = "train") -> list[LabelledRow]:
        rows = read_rows(self.recipe_path.with_name(f"{name}.jsonl")).rows
        return label_rows(Labeller(tokenizer_of(self.base), 96), rows, self.base.template_digest)[0]

    def model(self, recipe: Recipe) -> Any:
        plain = models.load_base(self.base, dtype="float32", device="cpu", attention="sdpa")
        return models.new_adapter(plain, recipe.tuning, seed=0)

    def store(self, keep: int = 2) -> CheckpointStore:
        return CheckpointStore(self.folder / "checkpoints", keep, self.said.append)

    def fit(
        self,
        recipe: Recipe,
        *,
        steps: int = 6,
        rows: Sequence[LabelledRow] | None = None,
        validation: Sequence[LabelledRow] = (),
        hook: Hook | None = None,
        check: Callable[[], None] = lambda: None,
        model: Any = None,
        **others: Any,
    ) -> FitResult:
        """Fit a fresh model; `losses` holds what each step logged, as MLflow would see it."""
        model = model or self.model(recipe)
        self.losses, self.rates, self.norms = {}, {}, {}
        if hook is not None:
            passes: list[int] = []

            def before(_module: Any, _args: Any, values: dict[str, torch.Tensor]) -> None:
                if torch.is_grad_enabled():
                    passes.append(len(values["input_ids"]))
                    hook(passes[-1], len(passes) - 1)

            model.register_forward_pre_hook(before, with_kwargs=True)

        def log(metrics: Mapping[str, float], step: int) -> None:
            if "loss" in metrics:
                self.losses[step], self.rates[step] = metrics["loss"], metrics["learning_rate"]
                self.norms[step] = metrics["grad_norm"]

        stream = io.StringIO()
        rows = self.labelled() if rows is None else rows
        try:
            return fit(
                model,
                tokenizer_of(self.base),
                rows,
                recipe,
                device="cpu",
                steps=steps,
                validation=validation,
                watch=Watch(Screen(stream), log, check),
                **others,
            )
        finally:
            self.said += stream.getvalue().splitlines()
