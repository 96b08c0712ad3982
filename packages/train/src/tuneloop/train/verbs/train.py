"""`tuneloop train`, `worker` and `base`: everything that runs a recipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from tuneloop.registry.printing import by_user_option, emit, json_option, table

if TYPE_CHECKING:
    from tuneloop.train.stages import StageOutcome

_EXISTING = click.Path(path_type=Path)


@click.command()
@click.argument("recipe", type=_EXISTING)
@click.option("--resume", "begin", flag_value="resume", help="Go on with the unfinished run of this recipe.")
@click.option("--fresh", "begin", flag_value="fresh", help="Throw an unfinished run of this recipe away.")
@click.option("--profile", is_flag=True, help="Write a torch trace and a memory picture of three steps to ./profile/.")
@by_user_option
@json_option
def train(recipe: Path, begin: Literal["resume", "fresh"] | None, profile: bool, by: str, as_json: bool) -> None:
    """Train a version from a recipe: audit, progress, held-out measures before and after, registered."""
    from tuneloop.registry import Registry
    from tuneloop.train.recipe import load_recipe
    from tuneloop.train.screen import Screen
    from tuneloop.train.settings import TrainSettings, hush_libraries, share_cores
    from tuneloop.train.spot import stop_on_notice
    from tuneloop.train.stopping import StopFlag, stop_on_signals

    hush_libraries()
    share_cores(with_an_engine=False)
    file = load_recipe(recipe, kept=begin == "resume")  # of a run that an earlier release may have begun
    settings = TrainSettings.load()
    stop = StopFlag()
    screen = Screen(sys.stderr if as_json else sys.stdout)
    with (
        Registry.open(begin=True) as registry,
        stop_on_signals(stop),
        stop_on_notice(stop, settings.spot, screen.say, host=settings.spot_host),
    ):
        from tuneloop.train.job.begin import job_from_recipe
        from tuneloop.train.stages import run_stages

        if file.stages:
            done = run_stages(
                file, registry, screen=screen, stop=stop, threads=settings.threads, begin=begin or "new", by=by
            )
            emit({"stages": {name: one.as_json() for name, one in done.items()}}, as_json, _stages_text(done))
            return
        job = replace(job_from_recipe(file, registry.settings.home, registry, screen), by=by)
        from tuneloop.train.job.run import run_job  # seconds of torch, once nothing is wrong with recipe and data

        outcome = run_job(
            job,
            registry,
            screen=screen,
            stop=stop,
            threads=settings.threads,
            begin=begin or "new",
            profile=profile,
        )
    made = outcome.version
    text = (
        f"\n{outcome.table()}\n\n{made.name} is registered; next: `tuneloop approve {made.name} --by YOU --reason WHY`"
    )
    emit(outcome.as_json(), as_json, text)


def _stages_text(done: Mapping[str, StageOutcome]) -> str:
    rows = [
        (name, one.version.name, "trained" if one.trained is not None else "was there") for name, one in done.items()
    ]
    last = list(done.values())[-1]
    shown = "" if last.trained is None else f"{last.trained.table()}\n\n"
    name = last.version.name
    return f"\n{shown}{table(('stage', 'version', ''), rows)}\n\nnext: `tuneloop approve {name} --by YOU --reason WHY`"


@click.command()
@click.option("--once", is_flag=True, help="Run at most one request, then end.")
@click.option("--poll-s", type=float, help="Seconds between looks at an empty queue.")
def worker(once: bool, poll_s: float | None) -> None:
    """Claim retraining requests: build the data, train, gate against the champion, register."""
    from tuneloop.registry import Registry
    from tuneloop.registry.errors import TuneloopError
    from tuneloop.registry.nouns import RetrainingState
    from tuneloop.train.retraining.worker import Worker
    from tuneloop.train.screen import Screen
    from tuneloop.train.settings import TrainSettings, WorkerSettings, hush_libraries, share_cores
    from tuneloop.train.spot import stop_on_notice
    from tuneloop.train.stopping import StopFlag, stop_on_signals

    hush_libraries()
    share_cores(with_an_engine=True)
    settings, machine = WorkerSettings.load(poll_s=poll_s), TrainSettings.load()
    stop, screen = StopFlag(), Screen()
    with (
        Registry.open(begin=True) as registry,
        stop_on_signals(stop),
        stop_on_notice(stop, machine.spot, screen.say, host=machine.spot_host),
    ):
        crew = Worker(registry, settings, threads=machine.threads, screen=screen, stop=stop)
        if not once:
            crew.run()
            return
        done = crew.run_once()
    if done is None:
        click.echo("no retraining request is waiting")
    elif done.state is RetrainingState.FAILED:
        raise TuneloopError(f"retraining {done.id} failed: {done.outcome}")


@click.command()
@click.argument("recipe", type=_EXISTING)
@json_option
def base(recipe: Path, as_json: bool) -> None:
    """Make a recipe's base model ready (convert or download it once) and print its folder and digests."""
    from tuneloop.registry.settings import RegistrySettings
    from tuneloop.train.base import prepare_base
    from tuneloop.train.recipe import load_recipe

    file = load_recipe(recipe, check_paths=False)
    home = RegistrySettings.load().home
    found = prepare_base(file.recipe.base.model, home / "bases", relative_to=file.folder)
    shown = {
        "name": found.name,
        "folder": str(found.folder.resolve()),
        "digest": found.digest,
        "template_digest": found.template_digest,
    }
    emit(shown, as_json, table(("base", ""), list(shown.items())))
