"""YAML with its line numbers kept, and validation errors told as `file:line: section.key: what is wrong`.

Built on PyYAML's node tree, because its values alone have lost their lines. `1e-3` is read as the number people mean.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from typing import Any

import yaml
from pydantic import BaseModel, Tag
from pydantic_core import ErrorDetails

from tuneloop.registry.errors import InvalidInput

Place = tuple[str | int, ...]
_EXPONENT = re.compile(r"^[+-]?\d+[eE][+-]?\d+$")  # YAML 1.1 wants a dot in it; nobody writes one


class RecipeText:
    """The values of a YAML document, the line of each, and the errors found so far.

    Raises:
        InvalidInput: the text is not one YAML mapping.
    """

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._lines: dict[Place, int] = {}
        self._found: list[tuple[int, str]] = []
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise InvalidInput(f"{name}:{line}: not valid YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise InvalidInput(f"{name}:1: not valid YAML: {error}") from None
        if not isinstance(root, yaml.MappingNode):
            raise InvalidInput(f"{name}:1: a recipe is a mapping of sections (base, data, run, …)")
        self._loader = yaml.SafeLoader("")
        self.values: dict[str, Any] = self._mapping(root, ())

    @property
    def errors(self) -> list[str]:
        """What is wrong, in order of line."""
        return [text for _, text in sorted(self._found)]

    def depth_of(self, place: Place) -> int:
        """How much of `place` stands in this document: the length of the longest part of it that does."""
        return next((n for n in range(len(place), 0, -1) if place[:n] in self._lines), 0)

    @staticmethod
    def place_of(error: ErrorDetails, model: type[BaseModel]) -> Place:
        """Where in a document one of pydantic's errors belongs."""
        return _walk(model, tuple(part for part in error["loc"] if part != "[key]"))[0]

    def complain(self, place: Place, message: str) -> None:
        """Add an error about the value at `place`."""
        line = self._lines.get(place[: self.depth_of(place)], 1)
        shown = ".".join(map(str, place))
        self._found.append((line, f"{self._name}:{line}: {shown}: {message}" if shown else f"{self._name}: {message}"))

    def add(self, error: ErrorDetails, model: type[BaseModel]) -> None:
        """Add one of pydantic's errors, in words, with the closest known key for an unknown one."""
        place, known = _walk(model, tuple(part for part in error["loc"] if part != "[key]"))
        if error["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            return self.complain(place, f"unknown key; {hint}")
        if error["type"] == "union_tag_invalid":
            given = error["ctx"]
            key, tags = given["discriminator"].strip("_()"), given["expected_tags"].replace("'", "")
            close = difflib.get_close_matches(given["tag"], tags.split(", "), n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            return self.complain((*place, key), f"{given['tag']!r} is none of {tags}{hint}")
        if error["type"] == "missing":
            return self.complain(place, "is missing")
        message = error["msg"].removeprefix("Value error, ")
        given = error["input"]
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
        return self.complain(place, message[0].lower() + message[1:] + shown)

    def _value(self, node: yaml.Node, place: Place) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.style is None and _EXPONENT.match(node.value):
            return float(node.value)
        return self._loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*place, key)
            if key in values:
                self._found.append(
                    (
                        key_node.start_mark.line + 1,
                        f"{self._name}:{key_node.start_mark.line + 1}: {'.'.join(map(str, here))}: stands twice",
                    )
                )
            self._lines[here] = key_node.start_mark.line + 1
            values[key] = self._value(value_node, here)
        return values


def _walk(model: type[BaseModel], loc: Place) -> tuple[Place, list[str]]:
    """The place in the document of one of pydantic's errors, and the keys known beside it.

    Where a section has several shapes (`tuning.method`, `objective.kind`), pydantic names the shape as a part of the
    place; the document knows no such part.
    """
    place: Place = ()
    here: Any = model
    known: list[str] = []
    parts = list(loc)
    while parts:
        part = parts.pop(0)
        place = (*place, part)
        known = list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []
        field = here.model_fields.get(str(part)) if known else None
        if field is None:
            here = None
        elif shapes := _shapes(field.annotation):
            here = shapes.get(str(parts.pop(0))) if parts else None
        else:
            here = _section_in(field.annotation)
    return place, known


def _shapes(annotation: Any) -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for option in (
        typing.get_args(annotation) if typing.get_origin(annotation) in {typing.Union, types.UnionType} else ()
    ):
        tags = [extra.tag for extra in getattr(option, "__metadata__", ()) if isinstance(extra, Tag)]
        if tags:
            found[tags[0]] = typing.get_args(option)[0]
    return found


def _section_in(annotation: Any) -> Any:
    """The model in `Section` or `Section | None`."""
    options = typing.get_args(annotation) or (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)
