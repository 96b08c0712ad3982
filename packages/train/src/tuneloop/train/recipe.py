"""The recipe: everything a training run is told, as strict values; a misspelt key is an error, never ignored.

Every option here is read by something. `load_recipe` reports all errors of a file at once, each with its line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tuneloop.registry.artifacts import text_digest
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import ModelName
from tuneloop.train.recipe_text import RecipeText

FRESH = "fresh"  # the evaluation set a retraining makes from its own corrections
VALIDATION = "validation"
SetName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]


def _tuple_of_names(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


class Part(BaseModel):
    """Base of every section: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BaseSection(Part):
    """`base`: what is adapted."""

    model: str = Field(min_length=1)  # hub id, folder, .gguf file, or package:<distribution>


class DataSection(Part):
    """`data`: JSONL files, relative to the recipe."""

    train: str
    validation: str | None = None  # its loss is measured while training; it decides nothing


class TuningSection(Part):
    """`tuning`: how the base is adapted."""

    method: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, le=512)
    alpha: int = Field(default=32, ge=1)  # fixed, so that the best learning rate hardly depends on the rank
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: Annotated[tuple[str, ...], BeforeValidator(_tuple_of_names), Field(min_length=1)] = ("all-linear",)
    rslora: bool = False
    dora: bool = False

    @property
    def adapts_all_linear(self) -> bool:
        """Whether every linear layer but the output head gets an adapter."""
        return self.target_modules == ("all-linear",)


class ObjectiveSection(Part):
    """`objective`: what is learned; the data's format (instruction or chat) is told from its rows."""

    kind: Literal["sft"] = "sft"
    max_length: int = Field(default=1024, ge=16)  # tokens; longer rows are cut at the end, and counted


class OptimSection(Part):
    """`optim`: AdamW and its schedule."""

    learning_rate: float = Field(default=2e-4, gt=0.0, le=1.0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.05, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)


class RunSection(Part):
    """`run`: how long, how wide, in which precision. Exactly one of `steps` and `epochs`."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0.0)
    batch_size: int = Field(default=16, ge=1)  # rows per optimiser step
    micro_batch: int = Field(default=8, ge=1)  # rows per forward pass; a smaller one needs less memory
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = Field(default=0, ge=0)
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}")
        return self


class EvaluateSection(Part):
    """`evaluate`: held-out sets, measured before and after training."""

    sets: dict[SetName, str] = Field(min_length=1)  # name → JSONL
    generate: int = Field(default=24, ge=0)  # rows per set answered greedily for BLEU; 0 leaves BLEU out
    max_new_tokens: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if taken := {FRESH, VALIDATION} & set(self.sets):
            raise ValueError(f"the set name {sorted(taken)[0]!r} is taken by tuneloop itself; choose another")
        return self


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
    tuning: TuningSection = TuningSection()
    objective: ObjectiveSection = ObjectiveSection()
    optim: OptimSection = OptimSection()
    run: RunSection
    evaluate: EvaluateSection
    publish: PublishSection
    retrain: RetrainSection = RetrainSection()


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with the text it came from, and the folder its paths are relative to."""

    recipe: Recipe
    text: str
    folder: Path

    @property
    def digest(self) -> str:
        """`sha256:…` of the text."""
        return text_digest(self.text)


def load_recipe(path: Path, *, check_paths: bool = True) -> RecipeFile:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        check_paths: whether the data files must exist; a recipe taken from a registry stands alone.

    Raises:
        InvalidInput: every error of the file, one a line, as `recipe.yaml:LINE: section.key: message`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput(f"{path}: cannot be read: {reason}; `tuneloop recipe new {path}` writes one") from None
    document = RecipeText(str(path), text)
    recipe = None
    try:
        recipe = Recipe.model_validate(document.values)
    except ValidationError as error:
        for found in error.errors():
            document.add(found, Recipe)
    if check_paths:
        for place, value in _paths_in(document.values):
            if isinstance(value, str) and not (path.parent / value).is_file():
                document.complain(place, f"there is no file {path.parent / value}")
    if document.errors or recipe is None:
        raise InvalidInput("\n".join(document.errors))
    return RecipeFile(recipe, text, path.parent)


def _paths_in(values: Any) -> list[tuple[tuple[str, ...], Any]]:
    def section(*names: str) -> dict[str, Any]:
        here = values
        for name in names:
            here = here.get(name) if isinstance(here, dict) else None
        return here if isinstance(here, dict) else {}

    found = [(("data", key), section("data").get(key)) for key in ("train", "validation")]
    return found + [(("evaluate", "sets", str(name)), value) for name, value in section("evaluate", "sets").items()]
