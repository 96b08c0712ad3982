"""Rows of the objectives that teach no single answer: preferences and bare questions, read and checked like any others.

Nothing here needs torch: what is wrong with rows is told before the seconds that loading it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Refused
from tuneloop.train.data.load import compared_with, dropped_words, read_measured, refuse_unread, unread
from tuneloop.train.data.preference import (
    PreferenceRow,
    PromptRow,
    Read,
    preferences,
    read_preferences,
    read_prompts,
)
from tuneloop.train.data.quality.advice import size_advice
from tuneloop.train.data.quality.findings import judge_rows
from tuneloop.train.data.quality.look import look
from tuneloop.train.data.rows import Row
from tuneloop.train.data.sources import Gathered, Places, records
from tuneloop.train.recipe import Recipe, RecipeFile
from tuneloop.train.recipe.data import Source
from tuneloop.train.recipe.objective import DpoObjective, RewardObjective

Material = Row | PreferenceRow | PromptRow


@dataclass(frozen=True)
class Loaded:
    """Rows of an objective that teaches no single answer, and the sets it is measured on."""

    train: tuple[Material, ...]
    sets: Mapping[str, tuple[Material, ...]]
    origin: Mapping[str, Any]  # for the lineage
    said: tuple[str, ...]  # for the screen


def load_material(
    file: RecipeFile, registry: Registry | None = None, *, tell: Callable[[int], None] = lambda _: None
) -> Loaded:
    """Read and check what an objective other than supervised fine-tuning learns from.

    Args:
        file: the recipe.
        registry: for sources that are traffic.
        tell: called with the number of training rows looked at.

    Raises:
        InvalidInput: a source cannot be read, or holds rows of another kind; each is named.
        Refused: the recipe's quality section refuses what was found.
        Unavailable: the hub does not answer.
    """
    recipe, places = file.recipe, Places(file.folder, registry, inputs=file.recipe.objective.template == "instruction")
    quality = recipe.data.quality
    gathered, material = gather_material(recipe, places)
    refuse_unread(gathered, quality)
    slice_by = recipe.evaluate.slice_by
    sets = {name: held_out(name, sources, places, slice_by) for name, sources in recipe.evaluate.sets.items()}
    columns = look(gathered.rows, quality, tell=tell)
    against = [compared_with(name, [looked_at(row) for row in rows]) for name, rows in sets.items()]
    findings = judge_rows(columns, gathered.rows, quality, against, unread(gathered))
    if findings.refusals:
        raise Refused("\n".join(findings.refusals))
    kept = tuple(row for row, keep in zip(material, findings.kept.tolist(), strict=True) if keep)
    if not kept:
        raise Refused(f"no row is left to learn from; {dropped_words(findings.dropped)}")
    origin = {
        "sources": {
            "train": [source.label for source in recipe.data.train],
            **{name: [source.label for source in sources] for name, sources in recipe.evaluate.sets.items()},
        },
        "rows": len(kept),
        "dropped": findings.dropped,
        "quality": findings.as_json(),
    }
    said = [f"data: {len(material)} rows read; {dropped_words(findings.dropped)}", *findings.warnings]
    advice = size_advice(
        len(set(columns.row_keys[findings.kept].tolist())),
        {},
        method=recipe.tuning.method,
        objective=recipe.objective.kind,
    )
    return Loaded(kept, sets, origin, (*said, *(f"advice: {line}" for line in advice)))


def gather_material(recipe: Recipe, places: Places) -> tuple[Gathered, list[PreferenceRow | PromptRow]]:
    """Read the rows of a recipe: as they are looked at, with what was met on the way; and as they are learned from.

    Raises:
        InvalidInput: a source cannot be read at all, or holds no rows.
        Unavailable: the hub does not answer.
    """
    material: list[PreferenceRow | PromptRow] = []
    gathered = Gathered(())
    for source in recipe.data.train:
        found = records(source, places)
        read: Read[PreferenceRow] | Read[PromptRow]
        if isinstance(recipe.objective, RewardObjective | DpoObjective):
            read = read_preferences(found, identical=True)
        else:
            read = read_prompts(found)
        if not (read.rows or read.broken or read.empty):
            raise InvalidInput(f"{source.label}: holds no rows; write one JSON object a line")
        material += read.rows
        gathered.broken += read.broken
        gathered.empty += read.empty
        gathered.ends.append(len(material))
    gathered.broken_rows, gathered.empty_rows = len(gathered.broken), len(gathered.empty)
    gathered.rows = [row.looked_at for row in material]
    return gathered, material


def looked_at(row: Material) -> Row:
    """A row as the checks of data quality look at it."""
    return row if isinstance(row, Row) else row.looked_at


def held_out(name: str, sources: Sequence[Source], places: Places, slice_by: str | None = None) -> tuple[Material, ...]:
    """A held-out set: preferences where its first row is one, conversations otherwise.

    Raises:
        InvalidInput: it cannot be read, or rows of it are broken.
    """
    first = next(records(sources[0], places), None) if sources[0].traffic is None else None
    if first is None or first.fields is None or not {"chosen", "rejected"} <= set(first.fields):
        return tuple(read_measured(name, sources, places, group_by=slice_by)[0].rows)
    return tuple(row for source in sources for row in preferences(records(source, places), source.label))
