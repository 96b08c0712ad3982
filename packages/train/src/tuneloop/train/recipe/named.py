"""The recipes that come with tuneloop: commented YAML files in `ready/` whose first line says what each is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuneloop.registry.errors import InvalidInput, NotFound
from tuneloop.registry.files import is_file
from tuneloop.train.recipe.file import Recipe, RecipeFile, load_recipe
from tuneloop.train.recipe.layers import READY


@dataclass(frozen=True)
class NamedRecipe:
    """One of them."""

    summary: str
    text: str
    recipe: Recipe


def named_recipes() -> dict[str, NamedRecipe]:
    """Name → recipe."""
    found = {}
    for path in sorted(READY.glob("*.yaml")):
        file = load_recipe(path, check_paths=False)
        found[path.stem] = NamedRecipe(file.own_text.splitlines()[0].removeprefix("# "), file.own_text, file.recipe)
    return found


def recipe_at(name_or_path: str) -> tuple[RecipeFile, bool]:
    """A recipe of that name (then True, and its data files need not exist), or the one in that file.

    Raises:
        InvalidInput: the file cannot be read, or is wrong somewhere.
    """
    named = READY / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if "/" not in name_or_path and is_file(named):
        return load_recipe(named, check_paths=False), True
    if "/" not in name_or_path and not path.suffix and not is_file(path):
        names = ", ".join(sorted(known.stem for known in READY.glob("*.yaml")))
        raise InvalidInput(f"{name_or_path!r} is neither a file nor the name of a recipe; there are {names}")
    return load_recipe(path), False


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
