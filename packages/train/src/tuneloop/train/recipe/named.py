"""The recipes that come with tuneloop: commented YAML files in `ready/` whose first line says what each is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.train.recipe.file import Recipe, load_recipe

_FOLDER = Path(__file__).parent / "ready"


@dataclass(frozen=True)
class NamedRecipe:
    """One of them."""

    summary: str
    text: str
    recipe: Recipe


def named_recipes() -> dict[str, NamedRecipe]:
    """Name → recipe."""
    found = {}
    for path in sorted(_FOLDER.glob("*.yaml")):
        file = load_recipe(path, check_paths=False)
        found[path.stem] = NamedRecipe(file.text.splitlines()[0].removeprefix("# "), file.text, file.recipe)
    return found


def write_new(path: Path, like: str) -> None:
    """Begin a recipe at `path` as a copy of a named one.

    Raises:
        NotFound: there is no recipe of that name.
        InvalidInput: something is at `path` already, or its folder does not exist.
    """
    named = named_recipes()
    if like not in named:
        raise NotFound(f"no recipe is named {like!r}; there are {', '.join(named)}")
    if path.exists():
        raise InvalidInput(f"{path} is there already; choose another name")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path.parent} is no folder; make it first")
    path.write_text(named[like].text, encoding="utf-8")
