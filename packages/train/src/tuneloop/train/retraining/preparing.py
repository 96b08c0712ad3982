"""What a retraining trains: its recipe and base, corrections of its window, old rows that are replayed, and what all of
it is measured on. A part that cannot be had ends the request before anything is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Refused
from tuneloop.registry.nouns import RetrainingRequest, Version
from tuneloop.registry.redaction import redact
from tuneloop.train.base import Base, base_of
from tuneloop.train.data.label_audit import why_unlabelled
from tuneloop.train.data.labels import Labeller, ends_of
from tuneloop.train.data.quality.findings import Findings, judge_rows
from tuneloop.train.data.quality.look import look
from tuneloop.train.data.rows import Row
from tuneloop.train.job.begin import Job
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe import FRESH, Recipe, RecipeFile, load_recipe
from tuneloop.train.recipe.data import QualitySection
from tuneloop.train.retraining.fresh import NOT_STORED, RetrainingData, build, corrected_rows
from tuneloop.train.screen import Screen
from tuneloop.train.tuning.models import load_tokenizer

BY = "worker"  # who trains a retraining; who approved its request is on record there
_ALL_OF_IT = timedelta(microseconds=1)  # `Traffic.window` leaves its first moment out


class Preparation:
    """Makes a request a job."""

    def __init__(self, registry: Registry, screen: Screen) -> None:
        self._registry = registry
        self._screen = screen

    def job(self, request: RetrainingRequest) -> Job:
        """All that is needed to train it; what becomes of the corrections is said.

        Raises:
            InvalidInput: the recipe is for another model or objective, or nothing can be learned from the corrections.
            Refused: the recipe's quality section refuses the corrections.
        """
        parent = self._registry.versions.get(request.model, request.base_version)
        file = self._recipe(request, parent)
        recipe, base = file.recipe, self._base(file, parent)
        validation = self.validation(parent, recipe)
        data = self.data(request, parent, recipe, validation, base)
        for line in data.said():
            self._screen.say(line)
        return Job(
            file,
            base,
            data.train,
            data.sets,
            validation,
            steps=recipe.retrain.steps,
            parent=parent,
            start=recipe.retrain.start_from,
            request_id=request.id,
            by=BY,
            origin={
                "fresh_rows": data.fresh_rows,
                "replayed_rows": data.replayed_rows,
                "dropped": dict(data.dropped),
                "quality": data.quality_json(),
                "window": [request.window_start.isoformat(), request.window_end.isoformat()],
            },
        )

    def _recipe(self, request: RetrainingRequest, parent: Version) -> RecipeFile:
        if request.recipe == parent.name:  # the champion's own, as it is kept with its run
            file = Lineage(self._registry.versions, parent).recipe()
        else:
            file = load_recipe(Path(request.recipe), check_paths=False, kept=True)
        if file.recipe.publish.model != request.model:
            raise InvalidInput(f"recipe {request.recipe} publishes {file.recipe.publish.model}, not {request.model}")
        if (kind := file.recipe.objective.kind) != "sft":
            raise InvalidInput(
                f"recipe {request.recipe} has objective {kind}, and a retraining learns from corrections, which are "
                "answers: give the policy a recipe with objective sft, or train this one again with `tuneloop train`"
            )
        return file

    def _base(self, file: RecipeFile, parent: Version) -> Base:
        bases = self._registry.settings.home / "bases"
        return base_of(parent, file.recipe, bases, relative_to=file.folder)

    def validation(self, parent: Version, recipe: Recipe) -> tuple[Row, ...]:
        """The rows its parent was validated on: what a retraining would be stopped early by."""
        rows = Lineage(self._registry.versions, parent).validation_rows()
        if not rows and recipe.run.early_stopping is not None:
            self._screen.say(
                f"warning: run.early_stopping stops nothing: {parent.name} keeps no validation rows, so that all "
                f"{recipe.retrain.steps} steps are trained; train it again with `tuneloop train` and data.validation"
            )
        return rows

    def data(
        self, request: RetrainingRequest, parent: Version, recipe: Recipe, validation: Sequence[Row], base: Base
    ) -> RetrainingData:
        """The rows to learn from, and those it is measured on."""
        registry, objective = self._registry, recipe.objective
        labeller = Labeller(load_tokenizer(base), objective.max_length, objective.template, ends_of(base.folder))
        corrections = registry.traffic.corrections(
            request.model,
            since=request.window_start - _ALL_OF_IT,
            until=request.window_end,
            by=request.learns_until,
        )
        dropped: Counter[str] = Counter()
        fresh = list(corrected_rows(((record, text) for record, text in corrections if text is not None), dropped))
        gone = request.rows - len(fresh) - (dropped.total() - dropped[NOT_STORED])
        if gone > 0:  # deleted with their users or by their age, with or without their record
            filed = f"the {request.rows} corrections that {request.id} was filed on"
            self._screen.say(f"warning: {gone} of {filed} are on record no more")
        lineage = Lineage(registry.versions, parent)
        sets = {
            (f"{FRESH}-{parent.version}" if name == FRESH else name): rows for name, rows in lineage.set_rows().items()
        }
        data = build(
            fresh,
            self._replayable(parent),
            sets,
            validation=validation,
            fresh_name=FRESH,
            replay_rows=recipe.retrain.replay_rows,
            redact=lambda text: redact(text).text,
            good=lambda rows: _judged(rows, recipe.data.quality),
            wrong=lambda row: why_unlabelled(labeller, row),
            dropped=dropped,
        )
        if not data.fresh_rows:
            raise InvalidInput(
                f"no correction from {request.window_start.isoformat()} to {request.window_end.isoformat()} "
                f"can be learned from ({len(fresh)} found; dropped: {dict(data.dropped) or 'none'})"
                + "".join(f"\n{why}" for why in data.shown_unlabelled)
            )
        return data

    def _replayable(self, version: Version) -> list[Row]:
        rows = list(Lineage(self._registry.versions, version).train_rows())
        while version.parent is not None:
            version = self._registry.versions.get(version.model, version.parent)
            rows = [*Lineage(self._registry.versions, version).train_rows(), *rows]
        return rows


def _judged(rows: Sequence[Row], quality: QualitySection) -> Findings:
    """Corrections, redacted, are judged by the recipe's quality section; of doubles `build` keeps the newest.

    Raises:
        Refused: the section refuses what was found.
    """
    section = quality.model_copy(update=dict.fromkeys(("duplicates", "near_duplicates", "conflicts", "pii"), "off"))
    findings = judge_rows(look(rows, section), rows, section)
    if findings.refusals:
        raise Refused("users' corrections: " + "\n".join(findings.refusals))
    return findings
