"""What the comment behind each field of a recipe's sections says: read from the source, so that it is written once.

Pydantic knows no comments; the reference page and the JSON schema do, through this. Costs a parse of the few files.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tuneloop.train.recipe.part import Part

_TOOLS = ("noqa", "type:")  # comments that speak to a tool


def comment_of(model: type[BaseModel], field: str) -> str:
    """The comment behind a field, in the class it stands in; empty where there is none."""
    for owner in model.__mro__:
        if owner.__module__.startswith("tuneloop.") and field in inspect.get_annotations(owner):
            return _comments(Path(inspect.getfile(owner))).get((owner.__name__, field), "")
    return ""


def sections_in(annotation: Any) -> tuple[type[Part], ...]:
    """The sections that a field's type holds: one, several shapes of one, or none."""
    if isinstance(annotation, type):
        return (annotation,) if issubclass(annotation, Part) else ()
    found: list[type[Part]] = []
    for part in typing.get_args(annotation):
        found += [one for one in sections_in(part) if one not in found]
    return tuple(found)


def is_union(annotation: Any) -> bool:
    """Whether a type is one of several."""
    return typing.get_origin(annotation) in {typing.Union, types.UnionType}


@cache
def _comments(path: Path) -> dict[tuple[str, str], str]:
    source = path.read_text(encoding="utf-8")
    behind = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.lstrip("# ").startswith(_TOOLS)
    }
    return {
        (owner.name, field.target.id): behind[line]
        for owner in ast.walk(ast.parse(source))
        if isinstance(owner, ast.ClassDef)
        for field in owner.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        for line in [field.end_lineno or field.lineno]
        if line in behind
    }
