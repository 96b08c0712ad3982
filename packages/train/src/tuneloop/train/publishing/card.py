"""The model card: README.md of a published folder, from what is known of the run and nothing else.

It holds no path of this machine. Its pictures lie beside it in the run's artifacts (`lineage/pictures`), reached by a
relative name where the run was downloaded whole; every figure in them stands in its tables as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import LabelAudit, PromptAudit
from tuneloop.train.evaluation.compare import Compared, Comparison
from tuneloop.train.evaluation.measure import EvaluationSet, SetScore
from tuneloop.train.publishing import pictures
from tuneloop.train.recipe.file import Recipe

_SHOWN_SLICES = 12
_NUMBERS = ("batch_size", "epochs", "steps", "dtype", "seed", "packing", "gradient_checkpointing")


@dataclass(frozen=True)
class Facts:
    """What a card tells."""

    model: str
    base: Base
    parent: str | None  # the version it was compared with, where it is a retraining
    started_from: str  # `base`, or the parent's name
    recipe: Recipe
    recipe_digest: str
    code_commit: str
    run_id: str
    train_digest: str
    audit: LabelAudit | PromptAudit
    steps: int
    seconds: float
    sets: Mapping[str, EvaluationSet]
    after: Mapping[str, SetScore]
    comparisons: Sequence[Comparison]
    remarks: Sequence[str]
    unservable: str | None  # why an engine would not take it


def model_card(facts: Facts) -> str:
    """README.md: what it adapts, what it learned from and how, what it reached, its limits, how to serve it."""
    parts = [_head(facts), _data(facts), _recipe(facts), _measures(facts), _limits(facts), _serving(facts)]
    return "\n\n".join(parts) + "\n"


def _head(facts: Facts) -> str:
    what = "Full weights of" if facts.recipe.tuning.method == "full" else f"{facts.recipe.tuning.method} adapter on"
    since = f", compared with {facts.parent}" if facts.parent else ""
    return (
        f"# {facts.model}\n\n"
        f"{what} `{facts.base.name}`, trained {facts.steps} steps ({facts.seconds:.0f} s) with objective "
        f"{facts.recipe.objective.kind}, starting from {facts.started_from}{since}.\n\n"
        f"It belongs to this base and this chat template, and to no other:\n\n"
        f"- base {facts.base.digest}\n- chat template {facts.base.template_digest}"
    )


def _data(facts: Facts) -> str:
    audit = facts.audit
    rows = [("training", audit.rows, facts.train_digest)]
    rows += [(f"held out: {name}", len(chosen.rows), chosen.digest) for name, chosen in facts.sets.items()]
    return (
        "## Data\n\n"
        + _table(("Set", "Rows", "Digest"), rows)
        + f"\n\n{_learned(audit)} The rows themselves are kept with the run.\n\n"
        + _picture("Row lengths", pictures.LENGTHS)
    )


def _learned(audit: LabelAudit | PromptAudit) -> str:
    end = _code(audit.end_of_turn)
    if isinstance(audit, PromptAudit):
        left_out = f"{audit.left_out} were left out as too long"
        return f"It learned from its own answers (ended by {end}) to questions; {left_out}."
    unlearned = f", and {audit.unlearned_answers} earlier answers are not" if audit.unlearned_answers else ""
    return (
        f"Of {audit.tokens:,} training tokens {audit.trained_share:.1%} are learned (the assistant's turns, with "
        f"{end}){unlearned}; {audit.truncated_rows} rows were cut."
    )


def _recipe(facts: Facts) -> str:
    recipe = facts.recipe
    values = {f"tuning.{key}": value for key, value in recipe.tuning.model_dump(mode="json").items()}
    values |= {f"objective.{key}": value for key, value in recipe.objective.model_dump(mode="json").items()}
    values["optim.learning_rate"] = recipe.learning_rate.value
    values["optim.schedule"] = recipe.optim.schedule
    run = recipe.run.model_dump(mode="json")
    values |= {f"run.{key}": run[key] for key in _NUMBERS if run.get(key) is not None}
    return (
        "## Recipe\n\n"
        + _table(
            ("Key", "Value"), [(f"`{key}`", _code(_plain(value))) for key, value in values.items() if value is not None]
        )
        + f"\n\nWord for word in `lineage/recipe.yaml` ({facts.recipe_digest}); code {facts.code_commit}.\n\n"
        + _picture("Loss", pictures.LOSS)
    )


def _measures(facts: Facts) -> str:
    head = ("Held-out set", "Rows", "Measure", "Before", "After", "Difference")
    if not facts.comparisons:
        return "## Measured"
    whole = [found for comparison in facts.comparisons for found in comparison.whole]
    slices = [found for comparison in facts.comparisons for found in comparison.slices]
    parts = [
        "## Measured",
        "Before and after training on the same held-out rows, with 95 % bootstrap intervals "
        "over rows, in pairs for the difference. The difference of perplexity is that of NLL, in nats per token.",
        _table(head, [(found.set_name, found.rows, *_cells(found)) for found in whole]),
    ]
    if slices:
        parts.append(f"By `{facts.recipe.evaluate.slice_by}`, the largest slices first:")
        shown = [(found.set_name, found.group, found.rows, *_cells(found)) for found in slices]
        parts.append(_table((head[0], "Slice", *head[1:]), shown[: _SHOWN_SLICES * len(facts.comparisons)]))
        if len(shown) > _SHOWN_SLICES * len(facts.comparisons):
            parts.append("The others stand in `lineage/evaluation.json`.")
    notes = [note for comparison in facts.comparisons for note in comparison.notes]
    parts += [_bullets(notes)] if notes else []
    signatures = sorted({score.bleu_signature for score in facts.after.values() if score.bleu_signature})
    if signatures:
        parts.append("Answers were generated greedily. BLEU: " + ", ".join(map(_code, signatures)) + ".")
    return "\n\n".join([*parts, _picture("Before and after", pictures.MEASURES)])


def _limits(facts: Facts) -> str:
    names = ", ".join(facts.sets)
    said = [
        f"Nothing is known of it beyond the sets above ({names}): other subjects, languages and longer texts were not "
        "measured, nor were safety and bias.",
        "Whatever the base does wrong it may do as well; the base's licence and terms hold for this too.",
    ]
    if facts.unservable:
        said.append(f"It cannot be served as it is: {facts.unservable}.")
    return "## Limits\n\n" + _bullets([*said, *facts.remarks])


def _serving(facts: Facts) -> str:
    steps = (
        "## Serve\n\nApprove the version, then promote it; engines fetch it, check its digest, base and template, and "
        f"load it:\n\n```console\n$ tuneloop approve {facts.model}@VERSION --by YOU --reason WHY\n"
        f"$ tuneloop promote {facts.model}@VERSION --by YOU --reason WHY\n```"
    )
    rank = facts.recipe.tuning.model_dump().get("rank")
    if rank is not None and facts.unservable is None:
        steps += (
            "\n\nOr by hand, from a copy of this folder and its base:\n\n```console\n"
            f"$ vllm serve {facts.base.name} --enable-lora --max-lora-rank {1 << (max(8, rank) - 1).bit_length()} "
            f"--lora-modules {facts.model}=FOLDER\n```"
        )
    return steps + f"\n\nEverything else about it is kept with MLflow run `{facts.run_id}`."


def _cells(found: Compared) -> tuple[str, str, str, str]:
    return (found.measure, found.before.shown(found.digits), found.after.shown(found.digits), found.difference_shown)


def _picture(title: str, name: str) -> str:
    """The folder is `model/` of the run's artifacts; the pictures lie in `lineage/` beside it."""
    return f"![{title}](../lineage/{pictures.FOLDER}/{name})"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    """A value such as cannot end its cell or its row."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
