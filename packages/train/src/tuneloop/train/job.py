"""One training run from rows to a registered version: audit, measure, fit, measure again, publish.

`train` and the worker share it. Whatever ends a run early closes its MLflow run (KILLED when it was stopped, FAILED
otherwise) and publishes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, TuneloopError
from tuneloop.registry.nouns import Interval, Version
from tuneloop.registry.printing import table
from tuneloop.registry.versions import VersionDraft
from tuneloop.train.base import Base, prepare_base
from tuneloop.train.data.labels import LabelAudit, LabelledRow, Labeller, label_rows
from tuneloop.train.data.rows import Row, data_digest, read_rows
from tuneloop.train.evaluation.measure import EvaluationSet, SetScore, pad_token_id, score_rows, score_set
from tuneloop.train.evaluation.statistics import paired_difference, perplexity
from tuneloop.train.fit.arguments import planned_steps
from tuneloop.train.fit.progress import FitResult, Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.publishing.folder import code_commit, model_card
from tuneloop.train.publishing.lineage import Keeper, Lineage, evaluation_json
from tuneloop.train.recipe import RecipeFile
from tuneloop.train.recipe.objective import SftObjective
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag, Stopped
from tuneloop.train.tuning import models
from tuneloop.train.tuning.going_on import cannot_go_on
from tuneloop.train.tuning.precision import choose_dtype
from tuneloop.train.tuning.served import serving_notes


@dataclass(frozen=True)
class Job:
    """What a run needs to know; a retraining has a parent, the version it is compared with and may start from."""

    recipe: RecipeFile
    base: Base
    train: tuple[Row, ...]
    sets: Mapping[str, tuple[Row, ...]]
    validation: tuple[Row, ...] = ()
    steps: int | None = None  # None: the recipe's run section decides
    parent: Version | None = None
    start: Literal["base", "parent"] = "base"
    request_id: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)  # where the rows came from, for the manifest

    @property
    def model(self) -> str:
        """The registered model's name."""
        return self.recipe.recipe.publish.model


@dataclass(frozen=True)
class Outcome:
    """What a run made."""

    version: Version
    audit: LabelAudit
    fitted: FitResult
    before: Mapping[str, SetScore]
    after: Mapping[str, SetScore]
    differences: Mapping[str, Interval]

    def table(self) -> str:
        """Before and after, set by set."""
        rows = []
        for name, gap in self.differences.items():
            was, now = self.before[name].metrics(name), self.after[name].metrics(name)
            bleus = [f"{m[f'bleu.{name}']:.1f}" if f"bleu.{name}" in m else "–" for m in (was, now)]
            rows.append(
                (
                    name,
                    f"{was[f'perplexity.{name}']:.2f}",
                    f"{now[f'perplexity.{name}']:.2f}",
                    *bleus,
                    f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
                )
            )
        head = ("held-out set", "perplexity before", "after", "BLEU before", "after", "NLL difference (95 % interval)")
        return table(head, rows)


def run_job(job: Job, registry: Registry, *, screen: Screen, stop: StopFlag, threads: int = 0) -> Outcome:
    """Do it all.

    Raises:
        InvalidInput: the data teach nothing, or do not fit the base; nothing was published.
        TuneloopError: the run was stopped or went wrong; nothing was published.
    """
    models.prepare_process(threads)
    device = models.choose_device()
    dtype = choose_dtype(job.recipe.recipe.run.dtype, device.value)
    screen.say(f"device: {device}\ndtype: {dtype}")
    job = replace(job, recipe=job.recipe.computed_in(dtype.value))
    tokenizer = models.load_tokenizer(job.base)
    objective = job.recipe.recipe.objective
    if not isinstance(objective, SftObjective):
        raise InvalidInput(f"objective.kind {objective.kind} is not built yet")
    _check_start(job, registry)
    labeller = Labeller(tokenizer, objective.max_length)
    labelled, audit = label_rows(labeller, job.train, job.base.template_digest)
    sets = {name: _prepared(name, rows, labeller, job) for name, rows in job.sets.items()}
    validation = label_rows(labeller, job.validation, job.base.template_digest)[0] if job.validation else []
    _say_audit(screen, audit)
    versions = registry.versions
    run_id = versions.start_run(job.model, name=job.request_id or "train", params=_params(job, audit))
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        with tempfile.TemporaryDirectory(prefix="tuneloop-train-") as scratch:
            run = _Run(job, registry, screen, stop, run_id, Path(scratch), tokenizer, labeller, device.value)
            outcome = run.go(labelled, audit, sets, validation)
        status = "FINISHED"
        return outcome
    except (Stopped, Conflict, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        versions.end_run(run_id, status)


class _Run:
    """One run's open ends, so that its steps need not pass them round."""

    def __init__(
        self,
        job: Job,
        registry: Registry,
        screen: Screen,
        stop: StopFlag,
        run_id: str,
        scratch: Path,
        tokenizer: Any,
        labeller: Labeller,
        device: str,
    ) -> None:
        self._job = job
        self._registry = registry
        self._screen = screen
        self._stop = stop
        self._run_id = run_id
        self._scratch = scratch
        self._tokenizer = tokenizer
        self._labeller = labeller
        self._device = device
        self._keeper = Keeper(registry.versions, run_id, scratch)

    def go(
        self,
        labelled: list[LabelledRow],
        audit: LabelAudit,
        sets: Mapping[str, EvaluationSet],
        validation: list[LabelledRow],
    ) -> Outcome:
        """Lineage in, measure, fit, measure, publish."""
        job, recipe = self._job, self._job.recipe.recipe
        self._keep_inputs(audit, sets)
        attention = models.choose_attention(self._device, recipe.run.dtype)
        self._screen.say(f"attention: {attention}")
        for note in serving_notes(recipe.tuning):
            self._screen.say(note)
        loader = models.Loader(job.base, recipe.tuning, recipe.run.dtype, self._device, attention.value)
        parent = self._fetched(job.parent) if job.parent else None
        start = parent if job.start == "parent" else None
        if loader.measures_apart or start != parent:  # what is compared is not what training starts from
            before = self._measure(loader.measurable(parent), sets, "before")
            model = loader.tunable(recipe.run.seed, start)
        else:
            model = loader.tunable(recipe.run.seed, start)
            before = self._measure(model, sets, "before")
        steps = job.steps or planned_steps(recipe.run, len(labelled))
        watch = Watch(
            self._screen, lambda m, step: self._registry.versions.log_metrics(self._run_id, m, step), self._stop.check
        )
        fitted = fit(
            model,
            self._tokenizer,
            labelled,
            recipe,
            device=self._device,
            steps=steps,
            validation=validation,
            watch=watch,
        )
        folder = self._scratch / "trained"
        models.save_trained(model, folder, job.base)
        apart: dict[str, float] = {}
        if loader.measures_apart:
            apart = self._measure_trained_on(model, sets, fitted.steps)
            del model
            model = loader.measurable(folder)
        after = self._measure(model, sets, "after", step=fitted.steps)
        return self._publish(folder, audit, fitted, sets, before, after, apart)

    def _fetched(self, version: Version) -> Path:
        return self._registry.versions.fetch(version, self._registry.settings.home / "adapters")

    def _measure_trained_on(self, model: Any, sets: Mapping[str, EvaluationSet], step: int) -> dict[str, float]:
        """Perplexity on the quantised base that was trained on; the version's own is that on the unquantised one."""
        found = {}
        for name, chosen in sets.items():
            pad_id = pad_token_id(self._tokenizer)
            rows = score_rows(model, chosen.labelled, pad_id=pad_id, check=self._stop.check)
            found[f"perplexity_quantized.{name}"] = perplexity(rows)
            self._screen.say(f"after training, {name}, on the quantised base: perplexity {perplexity(rows):.2f}")
        self._registry.versions.log_metrics(self._run_id, found, step)
        return found

    def _keep_inputs(self, audit: LabelAudit, sets: Mapping[str, EvaluationSet]) -> None:
        job = self._job
        self._keeper.keep_text("recipe.yaml", job.recipe.text)
        self._keeper.keep_json("label_audit.json", audit.as_json())
        self._keeper.keep_rows("train", job.train)
        for name, chosen in sets.items():
            self._keeper.keep_rows(f"sets/{name}", chosen.rows)
        manifest = {
            "base": {"name": job.base.name, "digest": job.base.digest, "template_digest": job.base.template_digest},
            "train": {"rows": len(job.train), "digest": data_digest(job.train)},
            "sets": {name: {"rows": len(chosen.rows), "digest": chosen.digest} for name, chosen in sets.items()},
            "parent": job.parent.name if job.parent else None,
            "request_id": job.request_id,
            **job.origin,
        }
        self._keeper.keep_json("data.json", manifest)

    def _measure(self, model: Any, sets: Mapping[str, EvaluationSet], when: str, step: int = 0) -> dict[str, SetScore]:
        limit = self._job.recipe.recipe.evaluate.max_new_tokens
        scores = {}
        for name, chosen in sets.items():
            score = score_set(
                model, self._tokenizer, self._labeller, chosen, max_new_tokens=limit, check=self._stop.check
            )
            metrics = score.metrics(name)
            self._registry.versions.log_metrics(self._run_id, metrics, step)
            shown = ", ".join(f"{key.split('.')[0]} {value:.2f}" for key, value in metrics.items())
            self._screen.say(f"{when} training, {name} ({len(chosen.rows)} rows): {shown}")
            scores[name] = score
        return scores

    def _publish(
        self,
        folder: Path,
        audit: LabelAudit,
        fitted: FitResult,
        sets: Mapping[str, EvaluationSet],
        before: Mapping[str, SetScore],
        after: Mapping[str, SetScore],
        apart: Mapping[str, float],
    ) -> Outcome:
        job, versions = self._job, self._registry.versions
        compared = job.parent.name if job.parent else job.base.name
        self._keeper.keep_json("evaluation.json", evaluation_json(sets, before, after, compared))
        differences = {name: paired_difference(before[name].rows, after[name].rows) for name in sets}
        metrics = {key: value for name, score in after.items() for key, value in score.metrics(name).items()}
        metrics |= apart
        card = model_card(
            model=job.model,
            base=job.base,
            parent=job.parent.name if job.parent else None,
            rows=len(job.train),
            steps=fitted.steps,
            metrics=metrics,
            differences=differences,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        rank, targets = models.adapter_shape(folder)
        draft = VersionDraft(
            model=job.model,
            kind="full" if models.saved_kind(folder) is None else "adapter",
            base=job.base.name,
            base_digest=job.base.digest,
            template_digest=job.base.template_digest,
            data_digest=data_digest(job.train),
            data_rows=len(job.train),
            recipe_digest=job.recipe.digest,
            code_commit=code_commit(),
            rank=rank,
            target_modules=targets,
            parent=job.parent.version if job.parent else None,
            request_id=job.request_id,
            metrics=metrics,
        )
        self._stop.check()
        version = versions.publish(draft, run_id=self._run_id, folder=folder)
        return Outcome(version, audit, fitted, before, after, differences)


def _check_start(job: Job, registry: Registry) -> None:
    """Refuse to go on from a parent that was trained in another way, before anything runs."""
    if job.parent is None or job.start == "base":
        return
    trained = Lineage(registry.versions, job.parent).recipe().recipe.tuning
    if (reason := cannot_go_on(trained, job.recipe.recipe.tuning)) is not None:
        raise InvalidInput(f"the run cannot start from {job.parent.name}: {reason}")


def _prepared(name: str, rows: tuple[Row, ...], labeller: Labeller, job: Job) -> EvaluationSet:
    try:
        labelled, _ = label_rows(labeller, rows, job.base.template_digest)
    except TuneloopError as error:
        raise type(error)(f"evaluation set {name}: {error}") from None
    wanted = job.recipe.recipe.evaluate.generate
    asked = tuple(rows[i * len(rows) // min(wanted, len(rows))] for i in range(min(wanted, len(rows))))
    return EvaluationSet(name, rows, tuple(labelled), asked, data_digest(rows))


def _params(job: Job, audit: LabelAudit) -> dict[str, str | int | float | bool]:
    recipe = job.recipe.recipe
    sections = {"tuning": recipe.tuning, "objective": recipe.objective, "optim": recipe.optim, "run": recipe.run}
    params: dict[str, str | int | float | bool] = {
        f"{section}.{key}": value if isinstance(value, str | int | float | bool) else str(value)
        for section, part in sections.items()
        for key, value in part.model_dump().items()
        if value is not None
    }
    return params | {
        "base": job.base.name,
        "base_digest": job.base.digest,
        "recipe_digest": job.recipe.digest,
        "data_rows": audit.rows,
        "trained_token_share": round(audit.trained_share, 4),
        "start_from": job.parent.name if job.parent and job.start == "parent" else "base",
        "request_id": job.request_id or "",
    }


def _say_audit(screen: Screen, audit: LabelAudit) -> None:
    screen.say(
        f"labels: {audit.rows} rows, {audit.tokens:,} tokens (longest row {audit.longest}), "
        f"{audit.trained_share:.1%} learned; {audit.end_of_turn} learned in all but {audit.rows_without_end} rows; "
        f"{audit.truncated_rows} rows cut; template {audit.template_digest[:19]}…"
    )


def job_from_recipe(file: RecipeFile, home: Path) -> Job:
    """What a recipe asks for: its base made ready, its files read.

    Raises:
        InvalidInput: the base or a data file cannot be used.
    """
    recipe = file.recipe
    names = {"train": recipe.data.train, "validation": recipe.data.validation}
    read = {key: read_rows(file.folder / name) for key, name in names.items() if name is not None}
    sets = {name: read_rows(file.folder / path).rows for name, path in recipe.evaluate.sets.items()}
    base = prepare_base(recipe.base.model, home / "bases", relative_to=file.folder)
    origin = {"files": {**names, "sets": dict(recipe.evaluate.sets)}, "formats": read["train"].formats}
    validation = read["validation"].rows if "validation" in read else ()
    return Job(file, base, read["train"].rows, sets, validation=validation, origin=origin)
