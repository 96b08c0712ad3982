"""`tuneloop recipe`: list, show and begin recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tuneloop.registry.printing import emit, json_option, table

_EXISTING = click.Path(path_type=Path)


@click.group()
def recipe() -> None:
    """List, show and begin recipes, and print their schema."""


@recipe.command("list")
@json_option
def recipe_list(as_json: bool) -> None:
    """List the recipes that come with tuneloop."""
    from tuneloop.train.recipe.named import named_recipes

    found = named_recipes()
    rows = [(name, one.summary) for name, one in found.items()]
    emit({name: one.summary for name, one in found.items()}, as_json, table(("recipe", "what it is for"), rows))


@recipe.command("show")
@click.argument("name_or_path")
@json_option
def recipe_show(name_or_path: str, as_json: bool) -> None:
    """Show a recipe: one that comes with tuneloop by name, or a file with every effective value."""
    import yaml

    from tuneloop.train.recipe.named import recipe_at

    file, is_named = recipe_at(name_or_path)
    if file.stages:
        shown: dict[str, Any] = {"stages": {stage.name: stage.recipe.model_dump(mode="json") for stage in file.stages}}
    else:
        shown = file.recipe.model_dump(mode="json")
    emit(shown, as_json, (file.own_text if is_named else yaml.safe_dump(shown, sort_keys=False)).rstrip())


@recipe.command("new")
@click.argument("path", type=_EXISTING)
@click.option("--like", default="lora", show_default=True, help="The recipe to begin with; see `tuneloop recipe list`.")
def recipe_new(path: Path, like: str) -> None:
    """Begin a recipe of your own: a commented file to fill in."""
    from tuneloop.train.recipe.named import write_new

    write_new(path, like)
    click.echo(
        f"{path} is written; point data.train, data.validation (or delete it) and evaluate.sets at your files, "
        f"then `tuneloop train {path}`"
    )


@recipe.command("schema")
def recipe_schema() -> None:
    """Print the JSON schema of recipes, for editors that check YAML as one types."""
    import json

    from tuneloop.train.recipe import schema

    click.echo(json.dumps(schema.recipe_schema(), indent=2, ensure_ascii=False))
