"""What a run is told: its recipe, base and rows, and where it starts from. All that can be refused is refused here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Version, parse_version_name
from tuneloop.train.base import Base, prepare_base
from tuneloop.train.data.load import load_data
from tuneloop.train.data.rows import Row, data_digest
from tuneloop.train.data.templates import templated
from tuneloop.train.evaluation.metrics import GROUP as METRIC_GROUP
from tuneloop.train.evaluation.metrics import Metric, find_metrics
from tuneloop.train.examples import Material, load_material
from tuneloop.train.fit.runs import run_key
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe import RecipeFile
from tuneloop.train.recipe.objective import SftObjective
from tuneloop.train.screen import Screen
from tuneloop.train.tuning.going_on import cannot_go_on


@dataclass(frozen=True)
class Job:
    """What a run needs to know; a retraining has a parent, the version it is compared with and may start from."""

    recipe: RecipeFile
    base: Base
    train: Sequence[Material]
    sets: Mapping[str, tuple[Material, ...]]
    validation: tuple[Row, ...] = ()
    steps: int | None = None  # None: the recipe's run section decides
    parent: Version | None = None
    start: Literal["base", "parent"] = "base"
    request_id: str | None = None
    by: str | None = None  # who starts it
    origin: Mapping[str, Any] = field(default_factory=dict)  # where the rows came from, for the manifest

    @property
    def key(self) -> str:
        """What names the run: equal for the same recipe, data, base, chat template and start."""
        return run_key(
            self.recipe.digest,
            self.base.digest,
            self.base.template_digest,
            data_digest(self.train),
            data_digest(self.validation) if self.validation else "",
            self.parent.name if self.parent else "",
            self.start,
            str(self.steps),
            self.request_id or "",
        )

    @property
    def model(self) -> str:
        """The registered model's name."""
        return self.recipe.recipe.publish.model


def job_from_recipe(
    file: RecipeFile, home: Path, registry: Registry | None = None, screen: Screen | None = None
) -> Job:
    """What a recipe asks for: its base made ready, its data read, checked and mixed.

    Args:
        file: the recipe.
        home: the state folder, where bases are kept.
        registry: for data that are traffic.
        screen: where it is said what was found in the data.

    Raises:
        InvalidInput: the base or a data file cannot be used.
        Refused: the recipe's quality section refuses what was found in the data.
    """
    base = templated(
        prepare_base(file.recipe.base.model, home / "bases", relative_to=file.folder), file.recipe.objective.template
    )
    if not isinstance(file.recipe.objective, SftObjective):
        material = load_material(file, registry)
        for line in material.said:
            (screen or Screen(sys.stderr)).say(line)
        return Job(file, base, material.train, material.sets, origin=material.origin)
    data = load_data(file, registry)
    for line in data.said:
        (screen or Screen(sys.stderr)).say(line)
    return Job(file, base, data.train, data.sets, validation=data.validation, origin=data.origin)


def going_on(job: Job, registry: Registry) -> Job:
    """The job with the version it starts from: a recipe may name one, a retraining knows its parent already.

    Raises:
        InvalidInput: the weights of that version cannot be gone on from with this recipe.
    """
    named = job.recipe.recipe.base.adapter
    if named is not None and job.parent is None:
        job = replace(job, parent=registry.versions.get(*parse_version_name(named)), start="parent")
    if job.parent is None or job.start == "base":
        return job
    parent, wanted = job.parent, (job.base.digest, job.base.template_digest)
    if (parent.base_digest, parent.template_digest) != wanted:
        raise InvalidInput(
            f"the run cannot start from {parent.name}: it was trained on {parent.base} ({parent.base_digest[:19]}…, "
            f"template {parent.template_digest[:19]}…), this run's base is {wanted[0][:19]}…, "
            f"template {wanted[1][:19]}…"
        )
    trained = Lineage(registry.versions, parent).recipe().recipe.tuning
    if (reason := cannot_go_on(trained, job.recipe.recipe.tuning)) is not None:
        raise InvalidInput(f"the run cannot start from {parent.name}: {reason}")
    return job


def metrics_of(job: Job, screen: Screen) -> tuple[Metric, ...]:
    """The recipe's metrics. A recipe taken from the registry has no scripts beside it, and none is run from there."""
    names = job.recipe.recipe.evaluate.metrics
    if job.request_id is not None:
        missing = [name for name in names if name.endswith(".py") and not (job.recipe.folder / name).is_file()]
        for name in missing:
            screen.say(
                f"warning: metric {name} is not measured: its script is not kept with a version; install it as a "
                f"package with an entry point {METRIC_GROUP}"
            )
        names = tuple(name for name in names if name not in missing)
    return find_metrics(names, job.recipe.folder)
