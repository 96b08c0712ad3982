"""`data`: where rows come from, in which shares they are mixed, and what is done about rows that are not fit.

A value of `train`, `validation` and `evaluate.sets` is a file's path, or a list of sources:

    train:
      - {path: own.jsonl, weight: 1}
      - {hub: org/name, split: train, revision: 3f2a…, weight: 3}
      - {traffic: my-model, days: 30, kind: corrections}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, PlainSerializer, model_validator
from pydantic_core import CoreSchema

from tuneloop.registry.nouns import ModelName
from tuneloop.train.recipe.part import Names, Part

_READ_WITH = {
    "path": frozenset({"path"}),
    "hub": frozenset({"hub", "name", "split", "revision"}),
    "traffic": frozenset({"traffic", "days", "kind"}),
}


class Source(Part):
    """One place rows come from: exactly one of `path`, `hub` and `traffic`, with the keys that belong to it."""

    path: str | None = Field(default=None, min_length=1)  # .jsonl, .parquet, .csv or .tsv, relative to the recipe
    hub: str | None = Field(default=None, min_length=1)  # org/name, or a folder with a data set in it
    name: str | None = None  # one configuration of a hub set
    split: str = "train"
    revision: str | None = None  # a commit: without it the hub may give other rows tomorrow
    traffic: ModelName | None = None  # a model whose users' words are on record
    days: float = Field(default=30.0, gt=0.0, le=36_500.0)  # how far back
    kind: Literal["corrections", "feedback"] = "corrections"  # feedback: answers with a thumb up as well
    rows: int | None = Field(default=None, ge=1)  # only the first so many
    weight: float | None = Field(default=None, gt=0.0, le=1e6)  # share of the mixture; see `data.mixture`

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        given = [key for key in _READ_WITH if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub and traffic (given: {', '.join(given) or 'none'})")
        unread = self.model_fields_set - _READ_WITH[given[0]] - {"rows", "weight"}
        if unread:
            raise ValueError(f"{', '.join(sorted(unread))} is not read with {given[0]}; remove it")
        return self

    @property
    def label(self) -> str:
        """How the source is called on screen and in the lineage."""
        if self.path is not None:
            return self.path
        if self.traffic is not None:
            return f"traffic of {self.traffic}, {self.kind} of {self.days:g} days"
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.hub}{at}{f'/{self.name}' if self.name else ''}:{self.split}"


def _sources(value: Any) -> Any:
    """One path may stand alone, and a path in a list needs no key."""
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, tuple):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("give a file's path, or a list of sources")
    return tuple({"path": item} if isinstance(item, str) else item for item in value)


def _as_written(sources: tuple[Source, ...]) -> Any:
    if len(sources) == 1 and sources[0].model_fields_set == {"path"}:
        return sources[0].path
    return [source.model_dump(mode="json", exclude_unset=True) for source in sources]


class _OrPath:
    """Tells editors that a path may stand for a source, and one source for a list."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        one = {"anyOf": [{"type": "string"}, handler(core)["items"]]}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


Sources = Annotated[
    tuple[Source, ...],
    BeforeValidator(_sources),
    PlainSerializer(_as_written),
    _OrPath(),
]


def _off(value: Any) -> Any:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


Action = Annotated[Literal["drop", "warn", "refuse", "off"], BeforeValidator(_off)]


class QualitySection(Part):
    """What is done about rows with a fault: leave them out, say so, refuse to train, or do not look."""

    format: Literal["refuse", "drop"] = "refuse"  # rows that cannot be read
    empty: Literal["refuse", "drop"] = "refuse"  # rows without an answer or a question
    identical: Literal["refuse", "drop"] = "refuse"  # preferences between two equal answers
    duplicates: Action = "drop"  # the same question and answer again, case and spacing aside; the first stays
    near_duplicates: Action = "warn"  # long instructions that all rows share make them alike: look before you drop
    near: float = Field(default=0.8, ge=0.5, le=1.0)  # Jaccard index of character 5-grams from which two rows are near
    conflicts: Action = "warn"  # the same question with another answer, or the opposite preference
    leakage: Action = "refuse"  # rows of an evaluation or validation set; of bare questions, its questions
    near_leakage: Action = "warn"  # near copies of such rows, and their questions with another answer
    long: Action = "warn"  # answers, or bare questions, of more than max_words
    min_words: int = Field(default=10, ge=0)  # of a row, question and answer, for a full score
    max_words: int = Field(default=500, ge=1)
    languages: Names = ()  # ISO 639-1 codes; none: languages are counted, and any will do
    language: Action = "warn"  # rows in another one
    toxicity: Action = "warn"
    max_toxicity: float = Field(default=0.9, gt=0.0, le=1.0)  # probability of offensive language
    pii: Action = "warn"  # e-mail addresses, telephone, card and account numbers, and the like
    balance: Annotated[Literal["warn", "refuse", "off"], BeforeValidator(_off)] = "warn"
    max_answer_share: float = Field(default=0.5, gt=0.0, le=1.0)  # of the rows that give one and the same answer
    length_balance: Annotated[Literal["warn", "refuse", "off"], BeforeValidator(_off)] = "warn"
    max_long_share: float = Field(default=0.6, gt=0.1, le=1.0)  # of all answers' words, in the longest tenth of them
    length_bias: Annotated[Literal["warn", "refuse", "off"], BeforeValidator(_off)] = "warn"  # of preferences
    max_length_bias: float = Field(default=0.65, gt=0.5, lt=1.0)  # share of pairs that length alone would tell
    min_score: float | None = Field(default=None, ge=0.0, le=1.0)  # rows under it are dropped; the guide's is 0.8

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        if self.language in {"drop", "refuse"} and not self.languages:
            raise ValueError(f"language: {self.language} needs languages, the codes that are allowed (such as [en])")
        return self


class DataSection(Part):
    """Rows that are learned from, and those that are watched while training."""

    train: Sources
    validation: Sources | None = None  # its loss is measured while training
    streaming: bool = False  # rows stay on disk and hub sets are read in passing: for sets larger than memory
    quality: QualitySection = QualitySection()

    @model_validator(mode="after")
    def _weights_make_sense(self) -> Self:
        if len({source.weight is None for source in self.train}) > 1:
            raise ValueError("give every source of train a weight, or none")
        if any(source.weight is not None for source in self.validation or ()):
            raise ValueError("a weight is read for train only; validation is measured as it is")
        return self
