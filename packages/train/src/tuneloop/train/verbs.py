"""The verbs of training: `train`, `worker`, `recipe`, `data`, `base`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from tuneloop.registry.printing import emit, json_option, table

_EXISTING = click.Path(path_type=Path)


@click.command()
@click.argument("recipe", type=_EXISTING)
@json_option
def train(recipe: Path, as_json: bool) -> None:
    """Train a version from a recipe: audit, progress, held-out measures before and after, registered."""
    from tuneloop.registry import Registry
    from tuneloop.train.recipe import load_recipe
    from tuneloop.train.screen import Screen
    from tuneloop.train.settings import TrainSettings, share_cores
    from tuneloop.train.stopping import StopFlag, stop_on_signals

    share_cores()
    file = load_recipe(recipe)
    settings = TrainSettings.load()
    stop = StopFlag()
    screen = Screen(sys.stderr if as_json else sys.stdout)
    with Registry.open() as registry, stop_on_signals(stop):
        from tuneloop.train.job import job_from_recipe, run_job

        outcome = run_job(
            job_from_recipe(file, registry.settings.home), registry, screen=screen, stop=stop, threads=settings.threads
        )
    made = outcome.version
    found = {
        "version": made,
        "audit": outcome.audit.as_json(),
        "fit": asdict(outcome.fitted),
        "before": {name: score.metrics(name) for name, score in outcome.before.items()},
        "after": {name: score.metrics(name) for name, score in outcome.after.items()},
        "differences": dict(outcome.differences),
    }
    text = (
        f"\n{outcome.table()}\n\n{made.name} is registered; next: `tuneloop approve {made.name} --by YOU --reason WHY`"
    )
    emit(found, as_json, text)


@click.command()
@click.option("--once", is_flag=True, help="Run at most one request, then end.")
@click.option("--poll-s", type=float, help="Seconds between looks at an empty queue.")
def worker(once: bool, poll_s: float | None) -> None:
    """Claim retraining requests: build the data, train, gate against the champion, register."""
    from tuneloop.registry import Registry
    from tuneloop.registry.errors import TuneloopError
    from tuneloop.registry.nouns import RetrainingState
    from tuneloop.train.screen import Screen
    from tuneloop.train.settings import TrainSettings, WorkerSettings, share_cores
    from tuneloop.train.stopping import StopFlag, stop_on_signals
    from tuneloop.train.worker import Worker

    share_cores()
    settings = WorkerSettings.load(poll_s=poll_s)
    stop = StopFlag()
    with Registry.open() as registry, stop_on_signals(stop):
        crew = Worker(registry, settings, threads=TrainSettings.load().threads, screen=Screen(), stop=stop)
        if not once:
            crew.run()
            return
        done = crew.run_once()
    if done is None:
        click.echo("no retraining request is waiting")
    elif done.state is RetrainingState.FAILED:
        raise TuneloopError(f"retraining {done.id} failed: {done.outcome}")


@click.group()
def recipe() -> None:
    """List, show and begin recipes."""


@recipe.command("list")
@json_option
def recipe_list(as_json: bool) -> None:
    """List the recipes that come with tuneloop."""
    from tuneloop.train.named import named_recipes

    found = named_recipes()
    rows = [(name, one.summary) for name, one in found.items()]
    emit({name: one.summary for name, one in found.items()}, as_json, table(("recipe", "what it is for"), rows))


@recipe.command("show")
@click.argument("name_or_path")
@json_option
def recipe_show(name_or_path: str, as_json: bool) -> None:
    """Show a recipe: one that comes with tuneloop by name, or a file with every effective value."""
    import yaml

    from tuneloop.train.named import named_recipes
    from tuneloop.train.recipe import load_recipe

    named = named_recipes().get(name_or_path)
    if named is not None:
        emit(named.recipe, as_json, named.text.rstrip())
        return
    found = load_recipe(Path(name_or_path)).recipe
    emit(found, as_json, yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False).rstrip())


@recipe.command("new")
@click.argument("path", type=_EXISTING)
@click.option("--like", default="lora", show_default=True, help="The recipe to begin with; see `tuneloop recipe list`.")
def recipe_new(path: Path, like: str) -> None:
    """Begin a recipe of your own: a commented file to fill in."""
    from tuneloop.train.named import write_new

    write_new(path, like)
    click.echo(f"{path} is written; point data.train and evaluate.sets at your files, then `tuneloop train {path}`")


@click.group()
def data() -> None:
    """Look at training data."""


@data.command("check")
@click.argument("file", type=_EXISTING)
@json_option
def data_check(file: Path, as_json: bool) -> None:
    """Check a JSONL file: every broken line, or counts, lengths and duplicates."""
    from tuneloop.train.data import read_rows, summarise

    found = summarise(read_rows(file))
    lengths = [
        (f"{what} (words: least, median, most)", " / ".join(f"{n:g}" for n in spread))
        for what, spread in (("question", found.prompt_words), ("answer", found.answer_words))
    ]
    rows = [
        ("rows", found.rows),
        ("formats", ", ".join(f"{kind} {n}" for kind, n in found.formats.items())),
        ("turns", found.turns),
        *lengths,
        ("duplicate rows", found.duplicate_rows),
        ("questions with more than one answer", found.repeated_prompts),
        ("fields nothing reads", ", ".join(f"{name} ({n} rows)" for name, n in found.ignored.items()) or "none"),
        ("digest", found.digest),
    ]
    emit(asdict(found), as_json, table((str(file), ""), rows))


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


VERBS = (train, worker, recipe, data, base)
