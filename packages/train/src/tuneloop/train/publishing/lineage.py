"""What a run leaves in MLflow beside its weights: a version is explained, compared and retrained from the registry
alone.

    lineage/recipe.yaml        the recipe, word for word
    lineage/data.json          base and its source, data sets with digests and counts, what was dropped and why
    lineage/environment.json   Python, platform, every installed distribution with its version
    lineage/label_audit.json   what was learned from
    lineage/train.jsonl        the rows themselves
    lineage/validation.jsonl   where the recipe validates: those rows, so that a retraining can stop early too
    lineage/sets/NAME.jsonl    the evaluation sets
    lineage/slices.json        where a recipe slices: each set's values of that field, row by row
    lineage/evaluation.json    every row's scores before and after, for paired comparisons, with what came of them
    lineage/pictures/*.png     loss, before and after, row lengths
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.nouns import Version
from tuneloop.registry.versions.store import Versions
from tuneloop.train.data.rows import Row, Written, read_rows, write_rows
from tuneloop.train.evaluation.compare import Compared, Comparison
from tuneloop.train.evaluation.judge import Pair
from tuneloop.train.evaluation.measure import EvaluationSet, SetScore
from tuneloop.train.evaluation.remarks import duplicate_rows, remarks_on_answers
from tuneloop.train.evaluation.statistics import RowScore, mean_nll, paired_difference, perplexity
from tuneloop.train.publishing import pictures
from tuneloop.train.recipe import RecipeFile, load_recipe

_SLICES = "slices.json"


class Keeper:
    """Writes lineage files of one run through a scratch folder."""

    def __init__(self, versions: Versions, run_id: str, scratch: Path) -> None:
        self._versions = versions
        self._run_id = run_id
        self._scratch = scratch

    def keep_text(self, name: str, text: str) -> None:
        """`lineage/<name>` with this text."""
        path = self._scratch / name
        path.write_text(text, encoding="utf-8")
        self._versions.log_file(self._run_id, path)

    def keep_json(self, name: str, value: Mapping[str, Any]) -> None:
        """`lineage/<name>` as indented JSON."""
        self.keep_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def keep_rows(self, name: str, rows: Sequence[Written]) -> None:
        """`lineage/<name>.jsonl`; the name may have one folder."""
        path = self._scratch / f"{name}.jsonl"
        write_rows(path, rows)
        folder = Path("lineage") / Path(name).parent
        self._versions.log_file(self._run_id, path, folder.as_posix())

    def keep_slices(self, sets: Mapping[str, EvaluationSet]) -> None:
        """`lineage/slices.json`, for a recipe that slices: each row's value, set by set."""
        self.keep_json(_SLICES, {name: [row.group for row in chosen.rows] for name, chosen in sets.items()})

    def keep_pictures(
        self, comparisons: Mapping[str, Comparison], lengths: Mapping[str, Sequence[int]], max_length: int | None
    ) -> None:
        """`lineage/pictures/*.png`; the curves are those that the run logged."""
        folder = self._scratch / pictures.FOLDER
        folder.mkdir()
        history = self._versions.metric_history
        pictures.draw_loss(
            folder / pictures.LOSS, history(self._run_id, "loss"), history(self._run_id, "validation_loss")
        )
        if comparisons:
            pictures.draw_before_after(folder / pictures.MEASURES, list(comparisons.values()))
        pictures.draw_token_lengths(folder / pictures.LENGTHS, lengths, max_length)
        for path in sorted(folder.iterdir()):
            self._versions.log_file(self._run_id, path, f"lineage/{pictures.FOLDER}")


def evaluation_json(
    sets: Mapping[str, EvaluationSet],
    before: Mapping[str, SetScore],
    after: Mapping[str, SetScore],
    comparisons: Mapping[str, Comparison],
    before_is: str,
    conditions: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `evaluation.json`; rows are `[nll, tokens]` in the order of the set's file, metrics in that of
    `asked`."""

    def side(chosen: EvaluationSet, score: SetScore) -> dict[str, Any]:
        return {
            "perplexity": perplexity(score.rows),
            "nll": mean_nll(score.rows),
            "bleu": score.bleu,
            "rows": [[row.nll, row.tokens] for row in score.rows],
            "answers": [answer.text for answer in score.answers],
            "ended": [answer.ended for answer in score.answers],
            "metrics": {name: list(scores) for name, scores in score.by_row.items()},
            "remarks": remarks_on_answers(chosen, score),
        }

    return {
        "before_is": before_is,
        "conditions": dict(conditions),
        "sets": {
            name: {
                "digest": chosen.digest,
                "duplicate_rows": duplicate_rows(chosen),
                "bleu_signature": after[name].bleu_signature,
                "asked": [row.prompt for row in chosen.asked],
                "references": [row.answer for row in chosen.asked],
                "difference": paired_difference(before[name].rows, after[name].rows).model_dump(),
                "compared": [_compared(found) for found in comparisons[name].measures],
                "too_few_rows": [list(found) for found in comparisons[name].too_few],
                "before": side(chosen, before[name]),
                "after": side(chosen, after[name]),
            }
            for name, chosen in sets.items()
        },
    }


def _compared(found: Compared) -> dict[str, Any]:
    spreads = {"before": found.before, "after": found.after, "difference": found.difference}
    return {"measure": found.measure, "slice": found.group, "rows": found.rows} | {
        name: {"estimate": spread.estimate, "interval": spread.interval and spread.interval.model_dump()}
        for name, spread in spreads.items()
    }


@dataclass(frozen=True)
class Lineage:
    """Reads a published version's lineage back."""

    versions: Versions
    version: Version

    def recipe(self) -> RecipeFile:
        """The recipe it was trained with, its base named from where it was found; its data paths are not looked at."""
        with self._file("recipe.yaml") as path:
            file = load_recipe(path, check_paths=False, kept=True)
        base = file.recipe.base
        found = self.manifest()["base"].get("source", base.model)  # older versions do not say
        base = base.model_copy(update={"model": found})
        return replace(file, recipe=file.recipe.model_copy(update={"base": base}))

    def manifest(self) -> dict[str, Any]:
        """What it was made of."""
        return self._json("data.json")

    def train_rows(self) -> tuple[Row, ...]:
        """The rows it was trained on."""
        return self._rows("train.jsonl")

    def validation_rows(self) -> tuple[Row, ...]:
        """The rows it was validated on; none where it was not, or by a release that did not keep them."""
        return self._rows("validation.jsonl") if "validation" in self.manifest() else ()

    def set_rows(self) -> dict[str, tuple[Row, ...]]:
        """Name → rows of each of its evaluation sets."""
        sets = {name: self._rows(f"sets/{name}.jsonl") for name in self.manifest()["sets"]}
        if self.recipe().recipe.evaluate.slice_by is None:
            return sets
        groups = self._json(_SLICES)
        return {
            name: tuple(replace(row, group=group) for row, group in zip(rows, groups[name], strict=True))
            for name, rows in sets.items()
        }

    def pairs(self) -> dict[str, Pair]:
        """Name → what it was compared with, and itself, row by row."""
        found = self.evaluation()["sets"]
        return {name: Pair(_scores(sides["before"]), _scores(sides["after"])) for name, sides in found.items()}

    def evaluation(self) -> dict[str, Any]:
        """What `evaluation_json` kept."""
        return self._json("evaluation.json")

    def _rows(self, name: str) -> tuple[Row, ...]:
        with self._file(name) as path:
            return read_rows(path, inputs=True).rows

    def _json(self, name: str) -> dict[str, Any]:
        with self._file(name) as path:
            return dict(json.loads(path.read_text(encoding="utf-8")))

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        try:
            with self.versions.fetched_file(self.version.run_id, f"lineage/{name}") as path:
                yield path
        except NotFound as error:
            raise InvalidInput(
                f"{self.version.name} cannot be retrained or judged from the registry: its run {self.version.run_id} "
                f"lacks lineage/{name}; train it again with `tuneloop train`"
            ) from error


def _scores(side: Mapping[str, Any]) -> tuple[RowScore, ...]:
    return tuple(RowScore(float(nll), int(tokens)) for nll, tokens in side["rows"])
