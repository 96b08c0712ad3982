"""The recipe: everything a training run is told, as strict values; a misspelt key is an error, never ignored.

Every option here is read by something. `load_recipe` reports all errors of a file at once, each with its line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import is_file
from tuneloop.registry.nouns import ModelName
from tuneloop.registry.plain_yaml import Place
from tuneloop.registry.versions.artifacts import text_digest
from tuneloop.train.choice import Choice
from tuneloop.train.recipe.combinations import refusals, unread
from tuneloop.train.recipe.data import DataSection
from tuneloop.train.recipe.evaluate import EvaluateSection
from tuneloop.train.recipe.layers import Layers
from tuneloop.train.recipe.objective import ObjectiveSection, SftObjective
from tuneloop.train.recipe.part import Part
from tuneloop.train.recipe.run import OptimSection, RunSection
from tuneloop.train.recipe.stages import STAGES, Stage, check_needs, split
from tuneloop.train.recipe.tuning import LoraTuning, TuningSection

_FULL_RATE = {"sft": 2e-5, "reward": 1e-5, "dpo": 5e-7, "grpo": 1e-6, "ppo": 1e-6}


class BaseSection(Part):
    """`base`: what is adapted."""

    model: str = Field(min_length=1)  # hub id, folder, .gguf file, or package:<distribution>
    adapter: str | None = None  # `model@version` to go on from, or an earlier stage; none: a fresh adapter


class PublishSection(Part):
    """`publish`: under which name the version is registered."""

    model: ModelName


class RetrainSection(Part):
    """`retrain`: what the worker does differently when it trains the model again."""

    steps: int = Field(default=60, ge=1)
    start_from: Literal["parent", "base"] = "parent"
    replay_rows: int = Field(default=200, ge=0)  # of the champion's own training rows, against forgetting
    margin: float = Field(default=0.02, gt=0.0)  # nats per token it may be worse on an old set
    min_rows: int = Field(default=10, ge=2)  # fewer rows in a set decide nothing


class Recipe(Part):
    """All sections of a recipe."""

    base: BaseSection
    data: DataSection
    tuning: TuningSection = LoraTuning()
    objective: ObjectiveSection = SftObjective()
    optim: OptimSection = OptimSection()
    run: RunSection
    evaluate: EvaluateSection
    publish: PublishSection
    retrain: RetrainSection = RetrainSection()

    @property
    def learning_rate(self) -> Choice[float]:
        """The rate that is used: the recipe's, or the one that holds up for its method and objective."""
        if self.optim.learning_rate is not None:
            return Choice(self.optim.learning_rate, "the recipe says so")
        full, kind = _FULL_RATE[self.objective.kind], self.objective.kind
        if self.tuning.method == "full":
            return Choice(full, f"that holds up for {kind} of all weights")
        return Choice(10 * full, f"an adapter takes about ten times the rate of all weights, {full:g} for {kind}")


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with the text it came from, and the folder its paths are relative to."""

    recipe: Recipe
    text: str  # complete in itself: where the file extends others, merged with them
    folder: Path
    own_text: str  # what stands in the file
    stages: tuple[Stage, ...] = ()  # then `recipe` is that of the last one

    @property
    def digest(self) -> str:
        """`sha256:…` of the text; a merged one carries the digests of all texts it was made of."""
        return text_digest(self.text)

    def computed_in(self, dtype: Literal["bfloat16", "float32"]) -> RecipeFile:
        """The same file with `run.dtype` decided; its text stays what the author wrote."""
        run = self.recipe.run.model_copy(update={"dtype": dtype})
        return replace(self, recipe=self.recipe.model_copy(update={"run": run}))


def load_recipe(path: Path, *, check_paths: bool = True, kept: bool = False) -> RecipeFile:
    """Read and check a recipe, with those it extends.

    Args:
        path: the YAML file.
        check_paths: whether the data files must exist; a recipe taken from a registry stands alone.
        kept: whether a version was trained with it, or a run of it is under way: then what it said in vain stays as
            it is.

    Raises:
        InvalidInput: every error of the file, one a line, as `recipe.yaml:LINE: section.key: message`.
    """
    layers = Layers(path)
    root = path.parent if check_paths else None
    if STAGES in layers.values:
        stages: list[Stage] = []
        for index, (name, values) in enumerate(split(layers)):
            with layers.within((STAGES, index)):
                made = _validated(layers, values, root, kept)
            if made is not None:
                stages.append(Stage(name, made, values))
        check_needs(layers, stages, root)
        if layers.errors:
            raise InvalidInput("\n".join(layers.errors))
        return RecipeFile(stages[-1].recipe, layers.text, path.parent, layers.own_text, tuple(stages))
    recipe = _validated(layers, layers.values, root, kept)
    if recipe is not None and recipe.base.adapter is not None and "@" not in recipe.base.adapter:
        layers.complain(("base", "adapter"), "is no MODEL@NUMBER")
    if layers.errors or recipe is None:
        raise InvalidInput("\n".join(layers.errors))
    return RecipeFile(recipe, layers.text, path.parent, layers.own_text)


def _validated(layers: Layers, values: dict[str, Any], root: Path | None, kept: bool) -> Recipe | None:
    """The recipe of these values, its errors added to its layers; `root` is where its files must be."""
    recipe = None
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        for found in error.errors():
            layers.add(found, Recipe)
    if recipe is not None:
        for place, message in [*refusals(recipe), *([] if kept else unread(recipe))]:
            layers.complain(place, message)
    for place, value in _paths_in(values):
        if root is not None and not is_file(root / value):
            layers.complain(place, f"there is no file {root / value}")
    return recipe


def _paths_in(values: Any) -> Iterator[tuple[Place, str]]:
    """Every file a recipe names, whatever else is wrong with it."""

    def section(*names: str) -> dict[str, Any]:
        here = values
        for name in names:
            here = here.get(name) if isinstance(here, dict) else None
        return here if isinstance(here, dict) else {}

    given: list[tuple[Place, Any]] = [(("data", key), section("data").get(key)) for key in ("train", "validation")]
    given += [(("evaluate", "sets", name), value) for name, value in section("evaluate", "sets").items()]
    for place, value in given:
        listed = isinstance(value, list)
        for index, item in enumerate(value if listed else [value]):
            here = (*place, index) if listed else place
            if isinstance(item, str):
                yield here, item
            elif isinstance(item, dict) and isinstance(item.get("path"), str):
                yield (*here, "path"), item["path"]
