"""The run itself: audit, measure, fit, measure again, publish.

Whatever ends it early closes its MLflow run (KILLED when it was stopped, FAILED otherwise) and publishes nothing; what
was trained until then is in the run's folder, and the same command with --resume goes on from there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, TuneloopError
from tuneloop.registry.nouns import Version
from tuneloop.registry.versions.store import Versions
from tuneloop.train.data.label_audit import LabelAudit
from tuneloop.train.data.labels import Labeller, ends_of
from tuneloop.train.data.store import PlacesOf
from tuneloop.train.evaluation.metrics import Metric
from tuneloop.train.examples import Audit, Prepared, prepare, told
from tuneloop.train.fit.arguments import attention_for
from tuneloop.train.fit.judging import Judging
from tuneloop.train.fit.launch import ChildSpec, fit_in_processes, load_weights, needs_processes
from tuneloop.train.fit.profiling import Profile
from tuneloop.train.fit.progress import FitResult, Watch
from tuneloop.train.fit.run import fit
from tuneloop.train.fit.runs import Begin, RunFolder, RunRecord, held_run
from tuneloop.train.fit.trackers import check_trackers, tracked_too
from tuneloop.train.fit.zero import check_launch
from tuneloop.train.job.begin import Job, metrics_of
from tuneloop.train.job.kept import conditions, kept_scores
from tuneloop.train.job.measure import Measurer
from tuneloop.train.job.outcome import Outcome
from tuneloop.train.job.parent import going_on
from tuneloop.train.job.publish import Publisher
from tuneloop.train.publishing.lineage import Keeper, Lineage
from tuneloop.train.recipe.objective import unservable
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag, Stopped
from tuneloop.train.tuning import models
from tuneloop.train.tuning.architectures import architecture_in, unserved
from tuneloop.train.tuning.limit import rank_limit
from tuneloop.train.tuning.precision import choose_dtype
from tuneloop.train.tuning.served import RankLimit, serving_notes


def run_job(
    job: Job,
    registry: Registry,
    *,
    screen: Screen,
    stop: StopFlag,
    threads: int = 0,
    begin: Begin = "new",
    profile: bool = False,
) -> Outcome:
    """Do it all; with `profile`, three steps of the fit are written down as a torch trace and a picture.

    Raises:
        InvalidInput: the data teach nothing, or do not fit the base, or an unfinished run is in the way; nothing was
            published.
        TuneloopError: the run was stopped or went wrong; nothing was published.
    """
    models.prepare_process(threads)
    device = models.choose_device()
    dtype = choose_dtype(job.recipe.recipe.run.dtype, device.value)
    screen.say(f"device: {device}\ndtype: {dtype}")
    check_launch(job.recipe.recipe.run, device.value)
    check_trackers(job.recipe.recipe.run.trackers)
    registry.versions.check_key()
    limit = rank_limit(registry, lambda: job.base.digest)
    if profile and needs_processes(job.recipe.recipe.run):
        raise InvalidInput("--profile looks at one process; leave run.launch and run.max_restarts out while profiling")
    job = going_on(replace(job, recipe=job.recipe.computed_in(dtype.value)), registry)
    recipe, judging = job.recipe.recipe, Judging.of(job.recipe, job.base, registry)
    tokenizer = models.load_tokenizer(job.base)
    labeller = Labeller(tokenizer, recipe.objective.max_length, recipe.objective.template, ends_of(job.base.folder))
    prepared = prepare(labeller, recipe, job.train, job.validation, job.sets, job.base.template_digest)
    metrics, params = metrics_of(job, screen), _params(job, prepared.examples.audit)
    screen.say(told(prepared.examples.audit))
    for remark in prepared.remarks():
        screen.say(f"note: {remark}")
    with (
        held_run(
            registry.settings.home,
            job.key,
            "either" if job.request_id else begin,
            say=screen.say,
            close=lambda run_id: registry.versions.end_run(run_id, "KILLED"),
        ) as folder,
        _tracked(
            registry.versions,
            folder,
            lambda: registry.versions.start_run(job.model, name=job.request_id or "train", params=params),
            screen.say,
            job.request_id,
        ) as run_id,
        tracked_too(
            recipe.run.trackers,
            job.model,
            run_id,
            params,
            lambda found, step: registry.versions.log_metrics(run_id, found, step),
        ) as log,
        tempfile.TemporaryDirectory(prefix="tuneloop-train-") as scratch,
    ):
        run = _Run(
            job,
            registry,
            Watch(screen, log, stop.check),
            run_id=run_id,
            scratch=Path(scratch),
            tokenizer=tokenizer,
            labeller=labeller,
            device=device.value,
            folder=folder,
            threads=threads,
            profile=profile,
            limit=limit,
        )
        return run.go(prepared, metrics, judging)


@contextmanager
def _tracked(
    versions: Versions,
    folder: RunFolder,
    start: Callable[[], str],
    say: Callable[[str], None],
    request_id: str | None = None,
) -> Iterator[str]:
    """The run in MLflow: a new one, or that of the attempt before; closed however the block ends.

    How the block ended stands, whether or not MLflow can be told; what went wrong and is left open the next run closes.
    """
    known = folder.record
    run_id = known.mlflow_run_id if known else start()
    folder.write(RunRecord(mlflow_run_id=run_id, request_id=request_id))
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except (Stopped, Conflict, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        left_open = False
        try:
            versions.end_run(run_id, status)
        except TuneloopError as error:
            left_open = True
            say(f"warning: MLflow run {run_id} is {status}, but is not closed: {error}")
        if status == "FINISHED" or (folder.store(keep=1).newest_valid() is None and not left_open):
            folder.remove()
        else:
            folder.write(RunRecord(mlflow_run_id=run_id, open=left_open, request_id=request_id))


class _Run:
    """One run's open ends, so that its steps need not pass them round."""

    def __init__(
        self,
        job: Job,
        registry: Registry,
        watch: Watch,
        *,
        run_id: str,
        scratch: Path,
        tokenizer: Any,
        labeller: Labeller,
        device: models.Device,
        folder: RunFolder,
        threads: int,
        profile: bool,
        limit: RankLimit,
    ) -> None:
        self._job = job
        self._registry = registry
        self._watch = watch
        self._run_id = run_id
        self._scratch = scratch
        self._tokenizer = tokenizer
        self._labeller = labeller
        self._device = device
        self._folder = folder
        self._threads = threads
        self._profile = profile
        self._limit = limit

    def go(self, prepared: Prepared, metrics: tuple[Metric, ...], judging: Judging) -> Outcome:
        """Lineage in, measure, fit, measure, publish."""
        job, recipe, watch = self._job, self._job.recipe.recipe, self._watch
        keeper = Keeper(self._registry.versions, self._run_id, self._scratch)
        publisher = Publisher(job, self._registry.versions, self._run_id, keeper, self._limit)
        publisher.keep_inputs(prepared, judging.named)
        loader = self._loader()
        now = conditions(recipe, loader)
        measurer = Measurer(recipe, prepared, self._tokenizer, self._labeller, metrics, watch, now)
        kept = kept_scores(Lineage(self._registry.versions, job.parent), prepared.sets, now) if job.parent else {}
        parent = self._fetched(job.parent) if job.parent else None
        start = parent if job.start == "parent" else None
        launched, seed = needs_processes(recipe.run), recipe.run.seed
        model: Any = None
        if loader.measures_apart or start != parent:  # what is compared is not what training starts from
            before = measurer.measure(loader.measurable(parent), "before", kept=kept)
        else:
            model = loader.tunable(seed, start)
            before = measurer.measure(model, "before", kept=kept)
        if launched:
            model = None  # they load their own, and need the memory
            fitted, weights = self._fit_in_processes(prepared, loader, start, judging)
            model = loader.tunable(seed, start)
            load_weights(model, weights)
        else:
            model = model or loader.tunable(seed, start)
            fitted = self._fit(model, prepared, loader, judging)
        folder = self._scratch / "trained"
        models.save_trained(model, folder, job.base)
        apart: dict[str, float] = {}
        if loader.measures_apart:
            apart = measurer.trained_on(model, fitted.steps)
            del model
            model = loader.measurable(folder)
        after = measurer.measure(model, "after", step=fitted.steps)
        watch.check()
        return publisher.publish(folder, fitted, measurer, before, after, apart)

    def _loader(self) -> models.Loader:
        """How the base is loaded, said with what that means for serving."""
        recipe, say = self._job.recipe.recipe, self._watch.screen.say
        attention = attention_for(recipe.run, self._device)
        say(f"attention: {attention}")
        unserved_base = unserved(architecture_in(self._job.base.folder), recipe.tuning)
        if (reason := unservable(recipe.objective) or unserved_base) is not None:
            say(f"warning: this version cannot be served as it is: {reason}")
        else:
            for note in serving_notes(recipe.tuning, self._limit):
                say(note)
        seed = recipe.objective.head_seed(recipe.run.seed)
        return models.Loader(self._job.base, recipe.tuning, recipe.run.dtype, self._device, attention.value, seed)

    def _fetched(self, version: Version) -> Path:
        return self._registry.versions.fetch(version, self._registry.settings.home / "adapters")

    def _fit(self, model: Any, prepared: Prepared, loader: models.Loader, judging: Judging) -> FitResult:
        """In this process."""
        recipe, examples = self._job.recipe.recipe, prepared.examples
        judge = judging.judge(self._tokenizer, dtype=loader.dtype, device=loader.device, attention=loader.attention)
        profile = Path("profile") / self._run_id
        return fit(
            model,
            self._tokenizer,
            examples.rows,
            recipe,
            device=self._device,
            steps=self._steps(prepared),
            validation=prepared.validation,
            watch=self._watch,
            judge=judge,
            store=self._folder.store(recipe.run.checkpoint.keep),
            resume=True,  # whether an earlier attempt may count was decided when the folder was opened
            places=PlacesOf(self._job.train),
            callbacks=[Profile(profile, self._watch.screen.say)] if self._profile else [],
        )

    def _fit_in_processes(
        self, prepared: Prepared, loader: models.Loader, start: Path | None, judging: Judging
    ) -> tuple[FitResult, Path]:
        """In processes of their own, where the recipe asks for them."""
        job, recipe = self._job, self._job.recipe.recipe
        spec = ChildSpec(
            recipe=recipe.model_dump(mode="json", exclude_unset=True),
            base=job.base.folder,
            start=start,
            device=self._device,
            attention=loader.attention,
            steps=self._steps(prepared),
            store=self._folder.checkpoints,
            owner=os.getpid(),
            threads=self._threads,
            reward_model=judging.folder,
        )
        rows, validation = prepared.examples.rows, prepared.validation
        return fit_in_processes(spec, rows, PlacesOf(job.train), validation, recipe.run, self._watch)

    def _steps(self, prepared: Prepared) -> int:
        recipe = self._job.recipe.recipe
        return self._job.steps or recipe.run.planned_steps(recipe.objective.drawn(len(prepared.examples.rows)))


def _params(job: Job, audit: Audit) -> Mapping[str, str | int | float | bool]:
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
