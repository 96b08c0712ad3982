"""`data`: the rows that are learned from, and those that are watched while training."""

from __future__ import annotations

from tuneloop.train.recipe.part import Part


class DataSection(Part):
    """JSONL files, relative to the recipe."""

    train: str
    validation: str | None = None  # its loss is measured while training
