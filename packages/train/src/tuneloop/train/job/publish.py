"""What a run leaves: its inputs with the MLflow run, and the trained folder with its card as the next version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.registry.nouns import Version
from tuneloop.registry.versions.artifacts import tokenizer_digest
from tuneloop.registry.versions.store import VersionDraft, Versions
from tuneloop.train.base import full_source
from tuneloop.train.data.rows import data_digest
from tuneloop.train.data.templates import FILE as TEMPLATE_FILE
from tuneloop.train.data.templates import template_text
from tuneloop.train.evaluation.compare import Comparison
from tuneloop.train.evaluation.preference import preference_table
from tuneloop.train.evaluation.remarks import remarks_on_answers
from tuneloop.train.evaluation.statistics import paired_difference
from tuneloop.train.examples import Prepared
from tuneloop.train.fit.progress import FitResult
from tuneloop.train.fit.reward import write_manifest
from tuneloop.train.job.begin import Job
from tuneloop.train.job.measure import Measurer, Scores
from tuneloop.train.job.outcome import Outcome
from tuneloop.train.publishing.card import Facts, model_card
from tuneloop.train.publishing.folder import code_commit, environment
from tuneloop.train.publishing.lineage import Keeper, evaluation_json
from tuneloop.train.recipe.objective import RewardObjective, unservable
from tuneloop.train.tuning import models
from tuneloop.train.tuning.architectures import architecture_in, unserved
from tuneloop.train.tuning.served import RankLimit, servable


@dataclass(frozen=True)
class Publisher:
    """Writes one run's lineage and registers its version."""

    job: Job
    versions: Versions
    run_id: str
    keeper: Keeper
    limit: RankLimit  # of the engines that would serve the version

    def keep_inputs(self, prepared: Prepared, rewards: Sequence[str]) -> None:
        """Recipe, rows and what is known of them, before anything is trained."""
        job, sets, preferences = self.job, prepared.sets, prepared.preferences
        self.keeper.keep_text("recipe.yaml", job.recipe.text)
        self.keeper.keep_json("environment.json", environment())
        self.keeper.keep_json("label_audit.json", prepared.examples.audit.as_json())
        self.keeper.keep_rows("train", job.train)
        if job.validation:
            self.keeper.keep_rows("validation", job.validation)
        for name in (*sets, *preferences):
            self.keeper.keep_rows(f"sets/{name}", job.sets[name])
        if job.recipe.recipe.evaluate.slice_by is not None:
            self.keeper.keep_slices(sets)
        validation = {"rows": len(job.validation), "digest": data_digest(job.validation)} if job.validation else None
        manifest = {
            "base": {
                "name": job.base.name,
                "source": full_source(job.recipe.recipe.base.model, job.recipe.folder),
                "digest": job.base.digest,
                "template_digest": job.base.template_digest,
            },
            "train": {"rows": len(job.train), "digest": data_digest(job.train)},
            **({"validation": validation} if validation else {}),
            "sets": {name: {"rows": len(chosen.rows), "digest": chosen.digest} for name, chosen in sets.items()},
            "preferences": {name: {"rows": len(one.rows), "digest": one.digest} for name, one in preferences.items()},
            "rewards": list(rewards),
            "parent": job.parent.name if job.parent else None,
            "request_id": job.request_id,
            "trained_by": job.by,
            **job.origin,
        }
        self.keeper.keep_json("data.json", manifest)

    def publish(
        self,
        folder: Path,
        fitted: FitResult,
        measurer: Measurer,
        before: Scores,
        after: Scores,
        apart: dict[str, float],
    ) -> Outcome:
        """Evaluation, pictures and card, then the folder as the next version.

        Args:
            folder: what was trained.
            fitted: how.
            measurer: of the run.
            before: what was reached before training.
            after: what the version reaches.
            apart: measures of the version on the base it was trained on, where that is another one.
        """
        job, prepared = self.job, measurer.prepared
        sets, objective = prepared.sets, job.recipe.recipe.objective
        compared = measurer.compare(before, after, fitted.steps)
        self.keeper.keep_pictures(compared, prepared.lengths(), objective.max_length)
        preferences = {name: (before.preferences[name], after.preferences[name]) for name in prepared.preferences}
        before_is = job.parent.name if job.parent else job.base.name
        evaluation = evaluation_json(sets, before.sets, after.sets, compared, before_is, measurer.conditions)
        shown = {name: {"before": was.as_json(), "after": now.as_json()} for name, (was, now) in preferences.items()}
        self.keeper.keep_json("evaluation.json", evaluation | {"preferences": shown})
        remarks = [*fitted.notes]
        remarks += [remark for name, chosen in sets.items() for remark in remarks_on_answers(chosen, after.sets[name])]
        card = model_card(self._facts(prepared, fitted, after, remarks, list(compared.values())))
        if preferences:
            card += f"\n```text\n{preference_table(preferences)}\n```\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
        if isinstance(objective, RewardObjective):
            write_manifest(folder, job.base)
        if (template := template_text(objective.template)) is not None:
            (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        version = self._register(folder, after.metrics() | apart)
        differences = {name: paired_difference(before.sets[name].rows, after.sets[name].rows) for name in sets}
        return Outcome(
            version,
            prepared.examples.audit,
            fitted,
            before.sets,
            after.sets,
            differences,
            compared,
            preferences,
            tuple(remarks),
        )

    def _register(self, folder: Path, metrics: dict[str, float]) -> Version:
        job = self.job
        rank, targets = models.adapter_shape(folder)
        draft = VersionDraft(
            model=job.model,
            kind="full" if models.saved_kind(folder) is None else "adapter",
            base=job.base.name,
            base_digest=job.base.digest,
            template_digest=job.base.template_digest,
            tokenizer_digest=tokenizer_digest(job.base.folder),
            data_digest=data_digest(job.train),
            data_rows=len(job.train),
            recipe_digest=job.recipe.digest,
            code_commit=code_commit(),
            rank=rank,
            target_modules=targets,
            parent=job.parent.version if job.parent and job.parent.model == job.model else None,
            request_id=job.request_id,
            trained_by=job.by,
            metrics=metrics,
        )
        return self.versions.publish(draft, run_id=self.run_id, folder=folder)

    def _facts(
        self,
        prepared: Prepared,
        fitted: FitResult,
        after: Scores,
        remarks: list[str],
        comparisons: list[Comparison],
    ) -> Facts:
        job = self.job
        recipe, parent = job.recipe.recipe, job.parent.name if job.parent else None
        return Facts(
            model=job.model,
            base=job.base,
            parent=parent,
            started_from=parent if parent and job.start == "parent" else "the base",
            recipe=recipe,
            recipe_digest=job.recipe.digest,
            code_commit=code_commit(),
            run_id=self.run_id,
            train_digest=data_digest(job.train),
            audit=prepared.examples.audit,
            steps=fitted.steps,
            seconds=fitted.seconds,
            sets=prepared.sets,
            after=after.sets,
            comparisons=comparisons,
            remarks=[*prepared.remarks(), *remarks],
            unservable=servable(recipe.tuning, self.limit)
            or unservable(recipe.objective)
            or unserved(architecture_in(job.base.folder), recipe.tuning),
        )
