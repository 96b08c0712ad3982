"""A recipe's data from its sources to what is learned: read, looked at, judged, left out, mixed; every row counted.

Pass by pass: sources are read once (and kept in memory, or on disk with `data.streaming`); every row is looked at once;
near copies are compared in full; what is kept is mixed by weight. docs/data.md says what a million rows cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Refused
from tuneloop.train.data.mixture import MANY_TIMES, Share, mix
from tuneloop.train.data.quality.advice import size_advice
from tuneloop.train.data.quality.findings import Findings, Measured, Unread, judge_rows
from tuneloop.train.data.quality.look import Columns, look
from tuneloop.train.data.rows import Row, by_line, refuse_all, require_groups
from tuneloop.train.data.sources import Gathered, Places, gather
from tuneloop.train.data.store import Chosen
from tuneloop.train.recipe import VALIDATION, RecipeFile
from tuneloop.train.recipe.data import QualitySection, Source

# Sets that are measured are only compared with: nothing else about them is judged, or left out.
COMPARED = QualitySection(
    duplicates="off",
    near_duplicates="off",
    conflicts="off",
    long="off",
    language="off",
    toxicity="off",
    pii="off",
    balance="off",
)


@dataclass(frozen=True)
class Data:
    """What a run learns from and is measured on, and how it came to be."""

    train: Sequence[Row]
    validation: tuple[Row, ...]
    sets: Mapping[str, tuple[Row, ...]]
    origin: Mapping[str, Any]  # for the lineage: sources with counts, formats, what was dropped and found
    said: tuple[str, ...]  # for the screen


def load_data(
    file: RecipeFile, registry: Registry | None = None, *, tell: Callable[[int], None] = lambda _: None
) -> Data:
    """Read, check and mix everything a recipe names.

    Args:
        file: the recipe.
        registry: for sources that are traffic.
        tell: called with the number of training rows looked at.

    Raises:
        InvalidInput: a source cannot be read; every broken row is named.
        Refused: the recipe's quality section refuses what was found.
        Unavailable: the hub does not answer.
    """
    recipe, places = (
        file.recipe,
        Places(
            file.folder, registry, file.recipe.data.streaming, inputs=file.recipe.objective.template == "instruction"
        ),
    )
    quality, answers_only = recipe.data.quality, recipe.objective.kind == "sft"
    measured_sources = dict(recipe.evaluate.sets)
    if recipe.data.validation is not None:
        measured_sources[VALIDATION] = recipe.data.validation
    kept_apart = {
        name: read_measured(
            name,
            sources,
            places,
            answers_only=answers_only,
            group_by=None if name == VALIDATION else recipe.evaluate.slice_by,
        )
        for name, sources in measured_sources.items()
    }
    gathered = gather(recipe.data.train, places, answers_only=answers_only)
    refuse_unread(gathered, quality)
    columns = look(gathered.rows, quality, tell=tell)
    against = [one for one, _ in kept_apart.values()]
    findings = judge_rows(columns, gathered.rows, quality, against, unread(gathered))
    refusals = [*findings.refusals, *shared_among(against, quality)]
    if refusals:
        raise Refused("\n".join(refusals))
    train, shares = _mixed(gathered, findings, recipe.data.train, recipe.run.seed, on_disk=places.streaming)
    dropped = findings.dropped | dict(gathered.left_out)
    origin = {
        "sources": {
            "train": [
                {"source": source.label, "rows": share.rows, "taken": share.taken, "weight": share.weight}
                for source, share in zip(recipe.data.train, shares, strict=True)
            ],
            **{name: [source.label for source in sources] for name, sources in measured_sources.items()},
        },
        "formats": dict(gathered.formats),
        "dropped": dropped,
        "quality": findings.as_json(),
    }
    said = _said(recipe.data.train, shares, gathered, columns, findings, dropped)
    advice = size_advice(
        len(set(columns.row_keys[findings.kept].tolist())),
        gathered.formats,
        method=recipe.tuning.method,
        objective=recipe.objective.kind,
    )
    sets = {name: tuple(one.rows) for name, (one, _) in kept_apart.items()}
    validation = sets.pop(VALIDATION, ())
    return Data(train, validation, sets, origin, (*said, *(f"advice: {line}" for line in advice)))


def read_measured(
    name: str, sources: Sequence[Source], places: Places, *, answers_only: bool = True, group_by: str | None = None
) -> tuple[Measured, Gathered]:
    """A set that is measured, held in memory, with what it takes to keep it out of training.

    Raises:
        InvalidInput: it cannot be read, or rows of it are broken or blank.
    """
    gathered = gather(sources, places, answers_only=answers_only, on_disk=False, group_by=group_by)
    refuse_unread(gathered, COMPARED)
    require_groups(gathered.rows, group_by, gathered.ignored, f"evaluation set {name}")
    return compared_with(name, gathered.rows), gathered


def compared_with(name: str, rows: Sequence[Row]) -> Measured:
    """A set that is measured, for comparing training rows with it."""
    return Measured(name, rows, look(rows, COMPARED))


def refuse_unread(gathered: Gathered, quality: QualitySection) -> None:
    """Stop at rows that cannot be read, or are blank, unless the recipe drops them.

    Raises:
        InvalidInput: the first of them, each as `file:line: what is wrong`.
    """
    errors: list[str] = []
    count = 0
    if quality.format == "refuse":
        errors += gathered.broken
        count += gathered.broken_rows
    if quality.empty == "refuse":
        errors += gathered.empty
        count += gathered.empty_rows
    refuse_all(sorted(errors, key=by_line), count)
    if not gathered.rows:
        raise InvalidInput(
            "every row was left out as broken or blank; the first: " + (gathered.broken + gathered.empty)[0]
        )


def unread(gathered: Gathered) -> Unread:
    """What could not be read, for the findings."""
    return Unread(gathered.broken_rows, tuple(gathered.broken), gathered.empty_rows, tuple(gathered.empty))


def shared_among(measured: Sequence[Measured], quality: QualitySection) -> list[str]:
    """Rows of the validation set that are also in an evaluation set: what stops a run early must not judge it."""
    watched = [one for one in measured if one.name == VALIDATION]
    others = [one for one in measured if one.name != VALIDATION]
    if not watched or not others or quality.leakage == "off":
        return []
    section = COMPARED.model_copy(update={"leakage": quality.leakage, "near_leakage": "off"})
    found = judge_rows(watched[0].columns, watched[0].rows, section, others)
    return [f"{VALIDATION}: {text}" for text in found.refusals]


def _mixed(
    gathered: Gathered, findings: Findings, sources: Sequence[Source], seed: int, *, on_disk: bool
) -> tuple[Sequence[Row], tuple[Share, ...]]:
    kept = np.flatnonzero(findings.kept)
    starts = [0, *gathered.ends[:-1]]
    parts = [kept[(kept >= start) & (kept < end)] for start, end in zip(starts, gathered.ends, strict=True)]
    order, shares = mix(parts, [source.weight for source in sources], seed)
    if not len(order):
        raise Refused(f"no row is left to learn from; {dropped_words(findings.dropped)}")
    chosen = Chosen(gathered.rows, order)
    return chosen if on_disk else tuple(chosen), shares


def dropped_words(dropped: Mapping[str, int]) -> str:
    """How many rows were left out for what, in words."""
    return f"dropped: {', '.join(f'{n} {reason}' for reason, n in dropped.items()) or 'none'}"


def _said(
    sources: Sequence[Source],
    shares: Sequence[Share],
    gathered: Gathered,
    columns: Columns,
    findings: Findings,
    dropped: Mapping[str, int],
) -> list[str]:
    formats = ", ".join(f"{kind} {n}" for kind, n in gathered.formats.items())
    lines = [f"data: {len(columns)} rows read ({formats}); {dropped_words(dropped)}"]
    if len(sources) > 1 or any(share.weight is not None for share in shares):
        lines += [f"  {source.label}: {share}" for source, share in zip(sources, shares, strict=True)]
    lines += [
        f"warning: {source.label}: each row is learned {share.times:.1f} times an epoch, and more than "
        f"{MANY_TIMES:g} times teaches little; lower its weight or add rows"
        for source, share in zip(sources, shares, strict=True)
        if share.weight is not None and share.times > MANY_TIMES
    ]
    if gathered.ignored:
        fields = ", ".join(f"{name} ({n} rows)" for name, n in gathered.ignored.items())
        lines.append(f"warning: fields nothing reads: {fields}")
    return lines + findings.warnings
