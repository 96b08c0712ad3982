"""A recipe of several stages, run in order: finished ones are found in the registry and skipped.

A stage is finished when a version of its model was trained with the same resolved recipe (which names the versions of
the stages before it), the same rows, base and template, and its files are still what was published. So a run that was
cut is simply started again, and a change anywhere trains everything that follows from it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Version
from tuneloop.train.data.rows import data_digest
from tuneloop.train.fit.runs import Begin
from tuneloop.train.job.begin import Job, job_from_recipe
from tuneloop.train.recipe import RecipeFile
from tuneloop.train.recipe.stages import Stage
from tuneloop.train.rewards import find_rewards
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag

if TYPE_CHECKING:
    from tuneloop.train.job.outcome import Outcome


@dataclass(frozen=True)
class StageOutcome:
    """A stage's version, and how it was trained unless it was there already."""

    version: Version
    trained: Outcome | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"version": self.version} if self.trained is None else self.trained.as_json()


def run_stages(
    file: RecipeFile,
    registry: Registry,
    *,
    screen: Screen,
    stop: StopFlag,
    threads: int = 0,
    begin: Begin = "new",
    by: str | None = None,
) -> Mapping[str, StageOutcome]:
    """Run what is not finished yet; stage by stage.

    Raises:
        InvalidInput: a stage's data or base cannot be used.
        TuneloopError: a stage was stopped or went wrong; the stages before it are kept.
    """
    done: dict[str, StageOutcome] = {}
    for stage in file.stages:  # whatever is wrong with the last stage is said before the first one runs
        job_from_recipe(_resolved(file, stage, done), registry.settings.home, registry)
        find_rewards(getattr(stage.recipe.objective, "rewards", ()))
    from tuneloop.train.job.run import run_job  # noqa: PLC0415 (seconds of torch, once nothing is wrong)

    for number, stage in enumerate(file.stages, start=1):
        screen.say(f"stage {number} of {len(file.stages)}: {stage.name} ({stage.recipe.objective.kind})")
        job = job_from_recipe(_resolved(file, stage, done), registry.settings.home, registry, screen)
        found = _finished(job, registry, screen)
        if found is not None:
            screen.say(f"stage {stage.name}: {found.name} was trained from the same recipe and rows; skipped")
            done[stage.name] = StageOutcome(found, None)
            continue
        outcome = run_job(replace(job, by=by), registry, screen=screen, stop=stop, threads=threads, begin=begin)
        done[stage.name] = StageOutcome(outcome.version, outcome)
    return done


def _resolved(file: RecipeFile, stage: Stage, done: Mapping[str, StageOutcome]) -> RecipeFile:
    made = {name: one.version.name for name, one in done.items()}
    recipe, objective = stage.recipe, stage.recipe.objective
    adapter = recipe.base.adapter
    if adapter in made:
        recipe = recipe.model_copy(update={"base": recipe.base.model_copy(update={"adapter": made[adapter]})})
    reward = getattr(objective, "reward_model", None)
    if reward in made:
        recipe = recipe.model_copy(update={"objective": objective.model_copy(update={"reward_model": made[reward]})})
    return replace(file, recipe=recipe, text=stage.text(made), stages=())


def _finished(job: Job, registry: Registry, screen: Screen) -> Version | None:
    wanted = (job.recipe.digest, data_digest(job.train), job.base.digest, job.base.template_digest)
    if job.model not in registry.versions.models():
        return None
    for version in registry.versions.all(job.model):
        if wanted != (version.recipe_digest, version.data_digest, version.base_digest, version.template_digest):
            continue
        try:
            registry.versions.fetch(version, registry.settings.home / "adapters")
        except InvalidInput as error:
            screen.say(f"{version.name} cannot be gone on from, trained again: {error}")
            continue
        return version
    return None
