"""What an objective learns from: its rows labelled and audited, and the sets they are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.registry.errors import InvalidInput, TuneloopError
from tuneloop.train.data.label_audit import LabelAudit, PromptAudit, label_pairs, label_prompts, label_rows
from tuneloop.train.data.labelled import LabelledStore, label_rows_on_disk
from tuneloop.train.data.labels import LabelledPair, LabelledPrompt, LabelledRow, Labeller
from tuneloop.train.data.material import Material
from tuneloop.train.data.preference import (
    PreferenceRow,
)
from tuneloop.train.data.rows import Row, data_digest
from tuneloop.train.evaluation.measure import EvaluationSet
from tuneloop.train.evaluation.preference import PreferenceSet
from tuneloop.train.evaluation.remarks import remarks_on_cut, remarks_on_labelled, remarks_on_set
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.evaluate import VALIDATION
from tuneloop.train.recipe.objective import (
    DpoObjective,
    GrpoObjective,
    ObjectiveSection,
    PpoObjective,
    RewardObjective,
)

Audit = LabelAudit | PromptAudit


@dataclass(frozen=True)
class Examples:
    """Rows as their objective learns from them, and what was found in them."""

    rows: Sequence[LabelledRow] | Sequence[LabelledPair] | Sequence[LabelledPrompt]
    audit: Audit

    @property
    def conversations(self) -> Sequence[LabelledRow]:
        """The rows of supervised fine-tuning."""
        if isinstance(self.rows, LabelledStore):
            return self.rows
        return [row for row in self.rows if isinstance(row, LabelledRow)]


def label(
    labeller: Labeller, objective: ObjectiveSection, rows: Sequence[Any], template_digest: str, *, on_disk: bool = False
) -> Examples:
    """Label rows as the objective needs them; `on_disk` keeps those of supervised fine-tuning out of memory.

    Raises:
        InvalidInput: rows that teach nothing, or cannot be followed; each is named.
    """
    if isinstance(objective, RewardObjective | DpoObjective):
        return Examples(*label_pairs(labeller, rows, template_digest))
    if isinstance(objective, GrpoObjective | PpoObjective):
        return Examples(*label_prompts(labeller, rows, objective.max_prompt_length, template_digest))
    if on_disk:
        return Examples(*label_rows_on_disk(labeller, rows, template_digest))
    return Examples(*label_rows(labeller, rows, template_digest))


def told(audit: Audit) -> str:
    """The audit in a line, with a warning below it where answers are read that nothing is learned of."""
    template = f"template {audit.template_digest[:19]}…"
    if isinstance(audit, PromptAudit):
        return (
            f"questions: {audit.rows} rows, {audit.tokens:,} tokens (longest {audit.longest}); {audit.left_out} left "
            f"out as too long; answers end with {audit.end_of_turn}; {template}"
        )
    line = (
        f"labels: {audit.rows} rows, {audit.tokens:,} tokens (longest row {audit.longest}), "
        f"{audit.trained_share:.1%} learned; {audit.end_of_turn} learned in all but {audit.rows_without_end} rows; "
        f"{audit.truncated_rows} rows cut; {template}"
    )
    return line if audit.warning is None else f"{line}\nwarning: {audit.warning}"


@dataclass(frozen=True)
class Prepared:
    """All rows of a run, labelled."""

    examples: Examples
    validation: Sequence[LabelledRow]
    sets: dict[str, EvaluationSet]  # conversations
    preferences: dict[str, PreferenceSet]

    def remarks(self) -> list[str]:
        """What is to be known of the held-out sets beside their scores."""
        of_sets = [remark for chosen in self.sets.values() for remark in remarks_on_set(chosen)]
        for name, one in self.preferences.items():
            of_sets += remarks_on_cut(name, [pair.chosen.truncated or pair.rejected.truncated for pair in one.pairs])
        return [*remarks_on_labelled(VALIDATION, self.validation), *of_sets]

    def lengths(self) -> dict[str, list[int]]:
        """Tokens of each row, set by set; of a preference, with its chosen answer."""
        of_set = {name: [len(row.ids) for row in chosen.labelled] for name, chosen in self.sets.items()}
        of_pairs = {name: [len(pair.chosen.ids) for pair in one.pairs] for name, one in self.preferences.items()}
        rows = self.examples.rows
        if isinstance(rows, LabelledStore):
            return {"training": rows.lengths.tolist(), **of_set, **of_pairs}
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
    examples = label(labeller, objective, train, template_digest, on_disk=recipe.data.streaming)
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
