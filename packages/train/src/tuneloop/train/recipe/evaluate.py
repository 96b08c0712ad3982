"""`evaluate`: held-out sets, and what is measured on them before and after training."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from tuneloop.train.recipe.data import Sources
from tuneloop.train.recipe.part import Part

FRESH = "fresh"  # the evaluation set a retraining makes from its own corrections
VALIDATION = "validation"
SetName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]


class EvaluateSection(Part):
    """Held-out sets, measured before and after training."""

    sets: dict[SetName, Sources] = Field(min_length=1)  # name → a file's path, or sources as in `data`
    generate: int = Field(default=24, ge=0)  # rows per set answered greedily for BLEU; 0 leaves BLEU out
    max_new_tokens: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if taken := {FRESH, VALIDATION} & set(self.sets):
            raise ValueError(f"the set name {sorted(taken)[0]!r} is taken by tuneloop itself; choose another")
        if any(source.weight is not None for sources in self.sets.values() for source in sources):
            raise ValueError("a weight is read for data.train only; sets are measured as they are")
        return self
