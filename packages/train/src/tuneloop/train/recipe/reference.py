"""The reference page of recipes, made from the sections themselves: `python -m tuneloop.train.recipe.reference`.

It prints docs/reference/recipe.md; a test holds the page in the tree against it.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator
from typing import Any

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tuneloop.train.recipe.comments import comment_of, is_union, sections_in
from tuneloop.train.recipe.file import Recipe
from tuneloop.train.recipe.layers import EXTENDS
from tuneloop.train.recipe.part import Part
from tuneloop.train.recipe.schema import EXTENDS_MEANS

_HEAD = f"""\
# The recipe, key by key

Made from the code by `python -m tuneloop.train.recipe.reference > docs/reference/recipe.md`; do not edit it by hand.

One YAML file says everything about a run. An unknown key is an error, and all errors of a file are reported at once,
each with its line. Paths are relative to the recipe that is run. `tuneloop recipe list` shows the recipes to begin
with, and `tuneloop recipe schema` prints a JSON schema with which an editor checks a recipe as you type.

## `{EXTENDS}`

{EXTENDS_MEANS[0].upper()}{EXTENDS_MEANS[1:]},
key by key. A section that changes its shape (`tuning.method`, `objective.kind`) is replaced whole, and of `run.steps`
and `run.epochs` the nearer one displaces the other. A version keeps the merged recipe, with the digests of all texts,
so that it can be trained again without them.
"""
_WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "`true` or `false`", "None": ""}


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, field in Recipe.model_fields.items():
        parts += _section(name, field.annotation, level=2)
    return "\n".join(parts).rstrip() + "\n"


def _section(place: str, annotation: Any, level: int) -> Iterator[str]:
    shapes = sections_in(annotation)
    for model in shapes:
        key = next((one for one in ("method", "kind") if one in model.model_fields and len(shapes) > 1), None)
        values = typing.get_args(model.model_fields[key].annotation) if key else ()
        title = f"`{place}` with `{key}: {values[0]}`" if key else f"`{place}`"
        yield f"{'#' * level} {title}\n"
        yield re.sub(r"^`\w+`: (\w)", lambda m: m[1].upper(), inspect.cleandoc(model.__doc__ or "")) + "\n"
        yield from _table(model)
        for name, field in model.model_fields.items():
            if sections_in(field.annotation):
                yield from _section(f"{place}.{name}", field.annotation, level + 1)


def _table(model: type[Part]) -> Iterator[str]:
    yield "| key | value | default | |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _value(field), _default(field), comment_of(model, name))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _value(field: FieldInfo) -> str:
    if sections_in(field.annotation):
        return "section, below"
    return _type(field.annotation) + _limits(field)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if is_union(annotation):
        return " or ".join(text for text in (_type(one) for one in arguments) if text)
    if origin is tuple:
        return f"{_type(arguments[0])}, one or a list"
    if origin is dict:
        return f"name → {_type(arguments[1])}"
    name = "None" if annotation is type(None) else str(annotation.__name__)
    return _WORDS.get(name, name)


def _limits(field: FieldInfo) -> str:
    signs = {
        annotated_types.Ge: ("≥", "ge"),
        annotated_types.Gt: (">", "gt"),
        annotated_types.Le: ("≤", "le"),
        annotated_types.Lt: ("<", "lt"),
    }
    found = [
        f"{signs[type(limit)][0]} {getattr(limit, signs[type(limit)][1]):g}"
        for limit in field.metadata
        if type(limit) in signs
    ]
    return f", {' and '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None or field.default is PydanticUndefined:
        return "required" if field.is_required() else ""
    if field.default is None or isinstance(field.default, Part):
        return ""
    if isinstance(field.default, tuple):
        return ", ".join(f"`{one}`" for one in field.default)
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
