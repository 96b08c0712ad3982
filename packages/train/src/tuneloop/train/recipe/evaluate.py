"""`evaluate`: held-out sets, and what is measured on them before and after training."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from tuneloop.registry.nouns import FRESH
from tuneloop.train.recipe.data import Sources
from tuneloop.train.recipe.part import Names, Part

VALIDATION = "validation"
SetName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]


class EvaluateSection(Part):
    """Held-out sets, measured before and after training."""

    sets: dict[SetName, Sources] = Field(min_length=1)  # name → a file's path, or sources as in `data`
    generate: int = Field(default=24, ge=0)  # rows per set answered greedily for BLEU and metrics; 0: perplexity alone
    max_new_tokens: int = Field(default=64, ge=1)  # an answer cut here is counted, and said
    metrics: Names = ()  # exact_match, token_f1, a package's own (entry point `tuneloop.metrics`), or ./script.py
    slice_by: str | None = Field(default=None, min_length=1)  # a field of the sets' rows: each value is shown apart
    min_rows: int = Field(default=10, ge=2)  # a slice with fewer rows, or an interval over fewer, is not shown

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if taken := {FRESH, VALIDATION} & set(self.sets):
            raise ValueError(f"the set name {sorted(taken)[0]!r} is taken by tuneloop itself; choose another")
        return self

    @model_validator(mode="after")
    def _metrics_have_answers(self) -> Self:
        if self.metrics and not self.generate:
            raise ValueError("metrics score generated answers: set generate to how many rows are answered")
        return self
