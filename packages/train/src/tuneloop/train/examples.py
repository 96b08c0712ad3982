"""What an objective learns from: rows read for those that teach no single answer, and all rows labelled and audited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Refused, TuneloopError
from tuneloop.train.data.labels import (
    LabelAudit,
    LabelledPair,
    LabelledPrompt,
    LabelledRow,
    Labeller,
    PromptAudit,
    label_pairs,
    label_prompts,
    label_rows,
)
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
from tuneloop.train.data.rows import Row, data_digest
from tuneloop.train.data.sources import Gathered, Places, records
from tuneloop.train.evaluation.measure import EvaluationSet
from tuneloop.train.evaluation.preference import PreferenceSet
from tuneloop.train.recipe import Recipe, RecipeFile
from tuneloop.train.recipe.data import Source
from tuneloop.train.recipe.objective import (
    DpoObjective,
    GrpoObjective,
    ObjectiveSection,
    PpoObjective,
    RewardObjective,
)

Material = Row | PreferenceRow | PromptRow
Audit = LabelAudit | PromptAudit


@dataclass(frozen=True)
class Examples:
    """Rows as their objective learns from them, and what was found in them."""

    rows: Sequence[LabelledRow] | Sequence[LabelledPair] | Sequence[LabelledPrompt]
    audit: Audit

    @property
    def conversations(self) -> Sequence[LabelledRow]:
        """The rows of supervised fine-tuning."""
        return [row for row in self.rows if isinstance(row, LabelledRow)]


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
    gathered, material = _gathered(recipe, places)
    refuse_unread(gathered, quality)
    sets = {name: _measured(name, sources, places, file) for name, sources in recipe.evaluate.sets.items()}
    columns = look(gathered.rows, quality, tell=tell)
    against = [compared_with(name, [_looked_at(row) for row in rows]) for name, rows in sets.items()]
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


def _gathered(recipe: Recipe, places: Places) -> tuple[Gathered, list[PreferenceRow | PromptRow]]:
    """The rows as they are learned from, and as they are looked at."""
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


def _looked_at(row: Material) -> Row:
    return row if isinstance(row, Row) else row.looked_at


def _measured(name: str, sources: Sequence[Source], places: Places, file: RecipeFile) -> tuple[Material, ...]:
    """A held-out set: preferences where its first row is one, conversations otherwise."""
    first = next(records(sources[0], places), None) if sources[0].traffic is None else None
    if first is None or first.fields is None or not {"chosen", "rejected"} <= set(first.fields):
        slice_by = file.recipe.evaluate.slice_by
        return tuple(read_measured(name, sources, places, group_by=slice_by)[0].rows)
    return tuple(row for source in sources for row in preferences(records(source, places), source.label))


def label(labeller: Labeller, objective: ObjectiveSection, rows: Sequence[Any], template_digest: str) -> Examples:
    """Label rows as the objective needs them.

    Raises:
        InvalidInput: rows that teach nothing, or cannot be followed; each is named.
    """
    if isinstance(objective, RewardObjective | DpoObjective):
        return Examples(*label_pairs(labeller, rows, template_digest))
    if isinstance(objective, GrpoObjective | PpoObjective):
        return Examples(*label_prompts(labeller, rows, objective.max_prompt_length, template_digest))
    return Examples(*label_rows(labeller, rows, template_digest))


def told(audit: Audit) -> str:
    """The audit in a line."""
    template = f"template {audit.template_digest[:19]}…"
    if isinstance(audit, PromptAudit):
        return (
            f"questions: {audit.rows} rows, {audit.tokens:,} tokens (longest {audit.longest}); {audit.left_out} left "
            f"out as too long; answers end with {audit.end_of_turn}; {template}"
        )
    return (
        f"labels: {audit.rows} rows, {audit.tokens:,} tokens (longest row {audit.longest}), "
        f"{audit.trained_share:.1%} learned; {audit.end_of_turn} learned in all but {audit.rows_without_end} rows; "
        f"{audit.truncated_rows} rows cut; {template}"
    )


@dataclass(frozen=True)
class Prepared:
    """All rows of a run, labelled."""

    examples: Examples
    validation: Sequence[LabelledRow]
    sets: dict[str, EvaluationSet]  # conversations
    preferences: dict[str, PreferenceSet]

    def lengths(self) -> dict[str, list[int]]:
        """Tokens of each row, set by set; of a preference, with its chosen answer."""
        of_set = {name: [len(row.ids) for row in chosen.labelled] for name, chosen in self.sets.items()}
        of_pairs = {name: [len(pair.chosen.ids) for pair in one.pairs] for name, one in self.preferences.items()}
        rows = self.examples.rows
        training = [len(row.chosen.ids if isinstance(row, LabelledPair) else row.ids) for row in rows]
        return {"training": training, **of_set, **of_pairs}


def prepare(
    labeller: Labeller,
    recipe: Recipe,
    train: Sequence[Material],
    validation: Sequence[Row],
    sets: Mapping[str, Sequence[Material]],
    template_digest: str,
) -> Prepared:
    """Label everything a run learns from and is measured on.

    Raises:
        InvalidInput: rows cannot be used; each is named, with its set.
    """
    objective = recipe.objective
    examples = label(labeller, objective, train, template_digest)
    watched = label_rows(labeller, validation, template_digest)[0] if validation else []
    conversations: dict[str, EvaluationSet] = {}
    preferences: dict[str, PreferenceSet] = {}
    for name, rows in sets.items():
        try:
            pairs = [row for row in rows if isinstance(row, PreferenceRow)]
            if pairs:
                made = label_pairs(labeller, pairs, template_digest)[0]
                preferences[name] = PreferenceSet(name, tuple(pairs), tuple(made), data_digest(pairs))
                continue
            if isinstance(objective, RewardObjective):
                raise InvalidInput("holds conversations, and a reward model is measured on preferences alone")
            spoken = tuple(row for row in rows if isinstance(row, Row))
            labelled = label_rows(labeller, spoken, template_digest)[0]
            wanted = min(recipe.evaluate.generate, len(spoken))
            asked = tuple(spoken[index * len(spoken) // wanted] for index in range(wanted))
            conversations[name] = EvaluationSet(name, spoken, tuple(labelled), asked, data_digest(spoken))
        except TuneloopError as error:
            raise type(error)(f"evaluation set {name}: {error}") from None
    return Prepared(examples, watched, conversations, preferences)
