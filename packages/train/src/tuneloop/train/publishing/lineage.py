"""What a run leaves in MLflow beside its weights: a version is explained, compared and retrained from the registry
alone.

lineage/recipe.yaml the recipe, word for word lineage/data.json base, data sets with digests and counts, what was
dropped and why lineage/label_audit.json what was learned from lineage/train.jsonl the rows themselves
lineage/sets/NAME.jsonl the evaluation sets lineage/evaluation.json every row's NLL before and after, for paired
comparisons
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.nouns import Version
from tuneloop.registry.versions import Versions
from tuneloop.train.data.rows import Row, read_rows, write_rows
from tuneloop.train.evaluation.judge import Pair
from tuneloop.train.evaluation.measure import EvaluationSet, SetScore
from tuneloop.train.evaluation.statistics import RowScore, mean_nll, paired_difference, perplexity
from tuneloop.train.recipe import RecipeFile, load_recipe


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

    def keep_rows(self, name: str, rows: Sequence[Row]) -> None:
        """`lineage/<name>.jsonl`; the name may have one folder."""
        path = self._scratch / f"{name}.jsonl"
        write_rows(path, rows)
        folder = Path("lineage") / Path(name).parent
        self._versions.log_file(self._run_id, path, folder.as_posix())


def evaluation_json(
    sets: Mapping[str, EvaluationSet], before: Mapping[str, SetScore], after: Mapping[str, SetScore], before_is: str
) -> dict[str, Any]:
    """The content of `evaluation.json`; rows are `[nll, tokens]` in the order of the set's file."""

    def side(score: SetScore) -> dict[str, Any]:
        return {
            "perplexity": perplexity(score.rows),
            "nll": mean_nll(score.rows),
            "bleu": score.bleu,
            "rows": [[row.nll, row.tokens] for row in score.rows],
            "answers": list(score.answers),
        }

    return {
        "before_is": before_is,
        "sets": {
            name: {
                "digest": chosen.digest,
                "bleu_signature": after[name].bleu_signature,
                "asked": [row.prompt for row in chosen.asked],
                "references": [row.answer for row in chosen.asked],
                "difference": paired_difference(before[name].rows, after[name].rows).model_dump(),
                "before": side(before[name]),
                "after": side(after[name]),
            }
            for name, chosen in sets.items()
        },
    }


@dataclass(frozen=True)
class Lineage:
    """Reads a published version's lineage back."""

    versions: Versions
    version: Version

    def recipe(self) -> RecipeFile:
        """The recipe it was trained with; its data paths are not looked at."""
        return load_recipe(self._file("recipe.yaml"), check_paths=False)

    def manifest(self) -> dict[str, Any]:
        """What it was made of."""
        return dict(json.loads(self._file("data.json").read_text(encoding="utf-8")))

    def train_rows(self) -> tuple[Row, ...]:
        """The rows it was trained on."""
        return read_rows(self._file("train.jsonl")).rows

    def set_rows(self) -> dict[str, tuple[Row, ...]]:
        """Name → rows of each of its evaluation sets."""
        return {name: read_rows(self._file(f"sets/{name}.jsonl")).rows for name in self.manifest()["sets"]}

    def pairs(self) -> dict[str, Pair]:
        """Name → what it was compared with, and itself, row by row."""
        found = json.loads(self._file("evaluation.json").read_text(encoding="utf-8"))["sets"]
        return {name: Pair(_rows(sides["before"]), _rows(sides["after"])) for name, sides in found.items()}

    def _file(self, name: str) -> Path:
        try:
            return self.versions.fetch_file(self.version.run_id, f"lineage/{name}")
        except NotFound as error:
            raise InvalidInput(
                f"{self.version.name} cannot be retrained or judged from the registry: its run {self.version.run_id} "
                f"lacks lineage/{name}; train it again with `tuneloop train`"
            ) from error


def _rows(side: Mapping[str, Any]) -> tuple[RowScore, ...]:
    return tuple(RowScore(float(nll), int(tokens)) for nll, tokens in side["rows"])
