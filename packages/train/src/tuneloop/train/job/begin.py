"""What a run is told: its recipe, rows and base. All that can be refused is refused here, the quickest first.

Nothing here needs torch unless a base is converted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneloop.registry import Registry
from tuneloop.registry.nouns import Version
from tuneloop.train.base import Base, prepare_base, require_source
from tuneloop.train.data.load import Data, load_data
from tuneloop.train.data.material import Material, load_material
from tuneloop.train.data.rows import Row, data_digest
from tuneloop.train.data.templates import templated
from tuneloop.train.evaluation.metrics import GROUP as METRIC_GROUP
from tuneloop.train.evaluation.metrics import Metric, find_metrics
from tuneloop.train.fit.runs import run_key
from tuneloop.train.recipe import RecipeFile
from tuneloop.train.recipe.objective import SftObjective
from tuneloop.train.screen import Screen


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
        """What names the run: equal for the same recipe, data, evaluation sets, base, chat template and start."""
        return run_key(
            self.recipe.digest,
            self.base.digest,
            self.base.template_digest,
            data_digest(self.train),
            data_digest(self.validation) if self.validation else "",
            *(f"{name} {data_digest(rows)}" for name, rows in sorted(self.sets.items())),
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
    source = file.recipe.base.model
    require_source(source, relative_to=file.folder)
    sft = isinstance(file.recipe.objective, SftObjective)
    data = load_data(file, registry) if sft else load_material(file, registry)
    for line in data.said:
        (screen or Screen(sys.stderr)).say(line)
    base = templated(prepare_base(source, home / "bases", relative_to=file.folder), file.recipe.objective.template)
    validation = data.validation if isinstance(data, Data) else ()
    return Job(file, base, data.train, data.sets, validation=validation, origin=data.origin)


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
