"""One training run from rows to a registered version: audit, measure, fit, measure again, publish.

`train` and the worker share it. Whatever ends a run early closes its MLflow run (KILLED when it was stopped, FAILED
otherwise) and publishes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput
from tuneloop.registry.nouns import Interval, Version, parse_version_name
from tuneloop.registry.printing import table
from tuneloop.registry.versions import VersionDraft
from tuneloop.train.base import Base, prepare_base
from tuneloop.train.data.labels import LabelAudit, Labeller
from tuneloop.train.data.rows import Row, data_digest, read_rows
from tuneloop.train.data.templates import FILE as TEMPLATE_FILE
from tuneloop.train.data.templates import template_text, templated
from tuneloop.train.evaluation.measure import SetScore, pad_token_id, score_set
from tuneloop.train.evaluation.preference import (
    PreferenceScore,
    PreferenceSet,
    by_likelihood,
    by_reward,
    preference_table,
)
from tuneloop.train.evaluation.statistics import paired_difference
from tuneloop.train.examples import Audit, Material, Prepared, prepare, read_measured, read_training, told
from tuneloop.train.fit.arguments import planned_steps
from tuneloop.train.fit.judging import Judging
from tuneloop.train.fit.progress import FitResult, Watch
from tuneloop.train.fit.reward import RewardModel, load_reward_base, write_manifest
from tuneloop.train.fit.run import fit
from tuneloop.train.publishing.folder import code_commit, model_card, save_adapter
from tuneloop.train.publishing.lineage import Keeper, Lineage, evaluation_json
from tuneloop.train.recipe import RecipeFile
from tuneloop.train.recipe.objective import RewardObjective, unservable
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag, Stopped
from tuneloop.train.tuning import models
from tuneloop.train.tuning.precision import choose_dtype


@dataclass(frozen=True)
class Job:
    """What a run needs to know; a retraining has a parent, the version it is compared with and may start from."""

    recipe: RecipeFile
    base: Base
    train: tuple[Material, ...]
    sets: Mapping[str, tuple[Material, ...]]
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
    audit: Audit
    fitted: FitResult
    before: Mapping[str, SetScore]
    after: Mapping[str, SetScore]
    differences: Mapping[str, Interval]
    preferences: Mapping[str, tuple[PreferenceScore, PreferenceScore]]  # before and after

    def as_json(self) -> dict[str, Any]:
        """Every figure of the run, for `--json`."""
        return {
            "version": self.version,
            "audit": self.audit.as_json(),
            "fit": asdict(self.fitted),
            "before": {name: score.metrics(name) for name, score in self.before.items()},
            "after": {name: score.metrics(name) for name, score in self.after.items()},
            "differences": dict(self.differences),
            "preferences": {
                name: {"before": was.accuracy, "after": now.accuracy} for name, (was, now) in self.preferences.items()
            },
        }

    def table(self) -> str:
        """Before and after, set by set."""
        tables = [self._conversations()] if self.differences else []
        return "\n\n".join([*tables, preference_table(self.preferences)] if self.preferences else tables)

    def _conversations(self) -> str:
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
    objective, judging = job.recipe.recipe.objective, Judging.of(job.recipe, job.base, registry)
    job = _going_on(job, registry)
    tokenizer = models.load_tokenizer(job.base)
    labeller = Labeller(tokenizer, objective.max_length, objective.template)
    digest = job.base.template_digest
    prepared = prepare(labeller, job.recipe.recipe, job.train, job.validation, job.sets, digest)
    audit = prepared.examples.audit
    screen.say(told(audit))
    versions = registry.versions
    run_id = versions.start_run(job.model, name=job.request_id or "train", params=_params(job, audit))
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        with tempfile.TemporaryDirectory(prefix="tuneloop-train-") as scratch:
            run = _Run(job, registry, screen, stop, run_id, Path(scratch), tokenizer, labeller, device.value, judging)
            outcome = run.go(prepared)
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
        judging: Judging,
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
        self._judging = judging
        self._keeper = Keeper(registry.versions, run_id, scratch)

    def go(self, prepared: Prepared) -> Outcome:
        """Lineage in, measure, fit, measure, publish."""
        job, recipe = self._job, self._job.recipe.recipe
        self._keep_inputs(prepared)
        attention = models.choose_attention(self._device, recipe.run.dtype)
        self._screen.say(f"attention: {attention}")
        for reason in (models.servable(recipe.tuning), unservable(recipe.objective)):
            if reason is not None:
                self._screen.say(f"warning: this version cannot be served as it is: {reason}")
        loading: dict[str, str] = {
            "dtype": recipe.run.dtype,
            "device": self._device,
            "attention": attention.value,
        }
        if isinstance(recipe.objective, RewardObjective):
            model = load_reward_base(job.base, seed=recipe.run.seed, **loading)
        else:
            model = models.load_base(job.base, **loading)
        if job.parent is not None:
            folder = self._registry.versions.fetch(job.parent, self._registry.settings.home / "adapters")
            model = models.load_adapter(model, folder, trainable=job.start == "parent")
        before = self._measure(model, prepared, "before")
        if job.start == "base":
            if job.parent is not None:
                model = model.unload()  # the champion was only measured; training starts from the bare base
            model = models.new_adapter(model, recipe.tuning, recipe.run.seed)
        steps = job.steps or planned_steps(recipe.run, prepared.examples.drawn(recipe.objective))
        watch = Watch(
            self._screen, lambda m, step: self._registry.versions.log_metrics(self._run_id, m, step), self._stop.check
        )
        fitted = fit(
            model,
            self._tokenizer,
            prepared.examples.rows,
            recipe,
            device=self._device,
            steps=steps,
            validation=prepared.validation,
            watch=watch,
            judge=self._judging.judge(self._tokenizer, check=self._stop.check, **loading),
        )
        after = self._measure(model, prepared, "after", step=fitted.steps)
        return self._publish(model, prepared, fitted, before, after)

    def _keep_inputs(self, prepared: Prepared) -> None:
        job, sets, preferences = self._job, prepared.sets, prepared.preferences
        self._keeper.keep_text("recipe.yaml", job.recipe.text)
        self._keeper.keep_json("label_audit.json", prepared.examples.audit.as_json())
        self._keeper.keep_rows("train", job.train)
        for name in (*sets, *preferences):
            self._keeper.keep_rows(f"sets/{name}", job.sets[name])
        manifest = {
            "base": {"name": job.base.name, "digest": job.base.digest, "template_digest": job.base.template_digest},
            "train": {"rows": len(job.train), "digest": data_digest(job.train)},
            "sets": {name: {"rows": len(chosen.rows), "digest": chosen.digest} for name, chosen in sets.items()},
            "preferences": {name: {"rows": len(one.rows), "digest": one.digest} for name, one in preferences.items()},
            "rewards": self._judging.named,
            "parent": job.parent.name if job.parent else None,
            "request_id": job.request_id,
            **job.origin,
        }
        self._keeper.keep_json("data.json", manifest)

    def _measure(self, model: Any, prepared: Prepared, when: str, step: int = 0) -> _Scores:
        limit = self._job.recipe.recipe.evaluate.max_new_tokens
        scores = _Scores({}, {})
        for name, chosen in prepared.sets.items():
            scores.sets[name] = score_set(
                model, self._tokenizer, self._labeller, chosen, max_new_tokens=limit, check=self._stop.check
            )
            self._say_score(name, len(chosen.rows), scores.sets[name].metrics(name), when, step)
        for name, pairs in prepared.preferences.items():
            scores.preferences[name] = self._prefers(model, pairs)
            self._say_score(name, len(pairs.rows), scores.preferences[name].metrics(name), when, step)
        return scores

    def _prefers(self, model: Any, chosen: PreferenceSet) -> PreferenceScore:
        recipe = self._job.recipe.recipe
        if not isinstance(recipe.objective, RewardObjective):
            return by_likelihood(model, chosen.pairs, pad_id=pad_token_id(self._tokenizer), check=self._stop.check)
        scorer = RewardModel(model, self._tokenizer, amp=recipe.run.dtype == "bfloat16", check=self._stop.check)
        return by_reward(scorer, chosen.pairs)

    def _say_score(self, name: str, rows: int, metrics: Mapping[str, float], when: str, step: int) -> None:
        self._registry.versions.log_metrics(self._run_id, metrics, step)
        shown = ", ".join(f"{key.split('.')[0]} {value:.2f}" for key, value in metrics.items())
        self._screen.say(f"{when} training, {name} ({rows} rows): {shown}")

    def _publish(
        self,
        model: Any,
        prepared: Prepared,
        fitted: FitResult,
        before: _Scores,
        after: _Scores,
    ) -> Outcome:
        job, versions = self._job, self._registry.versions
        compared = job.parent.name if job.parent else job.base.name
        evaluation = evaluation_json(prepared.sets, before.sets, after.sets, compared)
        preferences = {name: (before.preferences[name], after.preferences[name]) for name in prepared.preferences}
        shown = {name: {"before": was.as_json(), "after": now.as_json()} for name, (was, now) in preferences.items()}
        self._keeper.keep_json("evaluation.json", evaluation | {"preferences": shown})
        differences = {name: paired_difference(before.sets[name].rows, after.sets[name].rows) for name in prepared.sets}
        scored = [score.metrics(name) for name, score in after.sets.items()]
        scored += [score.metrics(name) for name, score in after.preferences.items()]
        metrics = {key: value for found in scored for key, value in found.items()}
        folder = self._scratch / "adapter"
        card = model_card(
            model=job.model,
            base=job.base,
            parent=job.parent.name if job.parent else None,
            rows=len(job.train),
            steps=fitted.steps,
            metrics=metrics,
            differences=differences,
        )
        if preferences:
            card += f"\n```text\n{preference_table(preferences)}\n```\n"
        save_adapter(model, folder, job.base, card)
        if isinstance(job.recipe.recipe.objective, RewardObjective):
            write_manifest(folder, job.base)
        if (template := template_text(job.recipe.recipe.objective.template)) is not None:
            (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        rank, targets = models.adapter_shape(folder)
        draft = VersionDraft(
            model=job.model,
            kind="adapter",
            base=job.base.name,
            base_digest=job.base.digest,
            template_digest=job.base.template_digest,
            data_digest=data_digest(job.train),
            data_rows=len(job.train),
            recipe_digest=job.recipe.digest,
            code_commit=code_commit(),
            rank=rank,
            target_modules=targets,
            parent=job.parent.version if job.parent and job.parent.model == job.model else None,
            request_id=job.request_id,
            metrics=metrics,
        )
        self._stop.check()
        version = versions.publish(draft, run_id=self._run_id, folder=folder)
        audit = prepared.examples.audit
        return Outcome(version, audit, fitted, before.sets, after.sets, differences, preferences)


@dataclass(frozen=True)
class _Scores:
    """What a model reached, set by set."""

    sets: dict[str, SetScore]
    preferences: dict[str, PreferenceScore]


def _going_on(job: Job, registry: Registry) -> Job:
    """A recipe that names an adapter goes on from it; a retraining knows its parent already."""
    recipe = job.recipe.recipe
    if recipe.base.adapter is None or job.parent is not None:
        return job
    parent = registry.versions.get(*parse_version_name(recipe.base.adapter))
    if (parent.kind, parent.base_digest, parent.template_digest) != (
        "adapter",
        job.base.digest,
        job.base.template_digest,
    ):
        raise InvalidInput(
            f"base.adapter {parent.name}: it is no adapter on this base with this template ({parent.kind} on "
            f"{parent.base}, {parent.base_digest[:19]}…, template {parent.template_digest[:19]}…)"
        )
    was = Lineage(registry.versions, parent).recipe().recipe.tuning.model_dump(exclude={"dropout"})
    if was != (wanted := recipe.tuning.model_dump(exclude={"dropout"})):
        differing = ", ".join(sorted(key for key in was.keys() | wanted.keys() if was.get(key) != wanted.get(key)))
        raise InvalidInput(
            f"base.adapter {parent.name}: it was tuned otherwise than this recipe says ({differing}); an adapter goes "
            "on in the shape it has: set tuning to the same"
        )
    return replace(job, parent=parent, start="parent")


def _params(job: Job, audit: Audit) -> dict[str, str | int | float | bool]:
    recipe = job.recipe.recipe
    sections = {"tuning": recipe.tuning, "objective": recipe.objective, "optim": recipe.optim, "run": recipe.run}
    params: dict[str, str | int | float | bool] = {
        f"{section}.{key}": value if isinstance(value, str | int | float | bool) else str(value)
        for section, part in sections.items()
        for key, value in part.model_dump().items()
        if value is not None
    }
    if isinstance(audit, LabelAudit):
        params["trained_token_share"] = round(audit.trained_share, 4)
    return params | {
        "base": job.base.name,
        "base_digest": job.base.digest,
        "recipe_digest": job.recipe.digest,
        "data_rows": audit.rows,
        "start_from": job.parent.name if job.parent and job.start == "parent" else "base",
        "request_id": job.request_id or "",
    }


def job_from_recipe(file: RecipeFile, home: Path) -> Job:
    """What a recipe asks for: its base made ready, its files read.

    Raises:
        InvalidInput: the base or a data file cannot be used.
    """
    recipe = file.recipe
    train, formats = read_training(file.folder / recipe.data.train, recipe.objective)
    validation = () if recipe.data.validation is None else read_rows(file.folder / recipe.data.validation).rows
    sets = {name: read_measured(file.folder / path) for name, path in recipe.evaluate.sets.items()}
    base = prepare_base(recipe.base.model, home / "bases", relative_to=file.folder)
    names = {"train": recipe.data.train, "validation": recipe.data.validation, "sets": dict(recipe.evaluate.sets)}
    origin = {"files": names, "formats": formats}
    return Job(file, templated(base, recipe.objective.template), train, sets, validation=validation, origin=origin)
