"""YAML with its line numbers kept, and validation errors told as `file:line: section.key: what is wrong`.

Built on PyYAML's node tree, because its values alone have lost their lines. `1e-3` is read as the number people mean.
Recipes, prices and policies are plain values: a tag (`!!python/…`), a date, a merge key, aliases that multiply and
nesting without end are refused with their line, before anything is built from them.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel, Tag
from pydantic_core import ErrorDetails

from tuneloop.registry.errors import InvalidInput

Place = tuple[str | int, ...]
_EXPONENT = re.compile(r"^[+-]?\d+[eE][+-]?\d+$")  # YAML 1.1 wants a dot in it; nobody writes one
_OTHER_BASE = re.compile(r"^[+-]?(0[0-9_bxo]|[0-9_]+:)")
_DEPTH = 20  # of nesting; no section is deeper than five
_NODES = 20_000  # values after every alias is followed; a recipe has some hundred
_DIGITS = 100  # of a number
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "map", "seq")}


class PlainYaml:
    """The values of a YAML document, the line of each, and the errors found so far.

    Raises:
        InvalidInput: the text is not one YAML mapping.
    """

    def __init__(self, name: str, text: str, shape: str = "a mapping of keys to values") -> None:
        """`name` and `shape` stand in errors: where the text comes from, and what it should be as a whole."""
        self._name = name
        self._lines: dict[Place, int] = {}
        self._found: list[tuple[int, str]] = []
        self._inside: Place = ()
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise InvalidInput(f"{name}:{line}: not valid YAML: {error.problem}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise InvalidInput(
                f"{name}:{line}: not valid YAML: it holds the character U+{ord(text[error.position]):04X}; remove it"
            ) from None
        except RecursionError:
            raise InvalidInput(f"{name}:{_deepest_line(text)}: is nested more than {_DEPTH} levels deep") from None
        if not isinstance(root, yaml.MappingNode):
            raise InvalidInput(f"{name}:1: is not {shape}")
        self._loader = yaml.SafeLoader("")
        self._nodes = 0
        self.values: dict[str, Any] = self._mapping(root, ())

    @property
    def errors(self) -> list[str]:
        """What is wrong, in order of line; what several stages share is told once."""
        return [text for _, text in sorted(set(self._found))]

    @contextmanager
    def within(self, place: Place) -> Iterator[None]:
        """Look for what is complained about below `place` first: the keys of a stage stand over the shared ones."""
        self._inside = place
        try:
            yield
        finally:
            self._inside = ()

    def depth_of(self, place: Place) -> int:
        """How much of `place` stands in this document: the length of the longest part of it that does."""
        place = self._standing(place)
        return next((n for n in range(len(place), 0, -1) if place[:n] in self._lines), 0)

    def _standing(self, place: Place) -> Place:
        """Where a place stands: below what `within` names, if anything of it is there."""
        inside = self._inside
        if inside and any((*inside, *place[:n]) in self._lines for n in range(len(place), 0, -1)):
            return (*inside, *place)
        return place

    @staticmethod
    def place_of(error: ErrorDetails, model: type[BaseModel]) -> Place:
        """Where in a document one of pydantic's errors belongs."""
        return walk(model, tuple(part for part in error["loc"] if part != "[key]"))[0]

    def complain(self, place: Place, message: str) -> None:
        """Add an error about the value at `place`."""
        place = self._standing(place)
        line = self._lines.get(place[: self.depth_of(place)], 1)
        shown = ".".join(map(str, place))
        self._found.append((line, f"{self._name}:{line}: {shown}: {message}" if shown else f"{self._name}: {message}"))

    def add(self, error: ErrorDetails, model: type[BaseModel]) -> None:
        """Add one of pydantic's errors, in words, with the closest known key for an unknown one."""
        place, known = walk(model, tuple(part for part in error["loc"] if part != "[key]"))
        if error["type"] == "extra_forbidden":
            return self.complain(place, unknown_key(str(place[-1]), known))
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
        if error["type"] == "literal_error" and isinstance(given, str):
            known = re.findall(r"'([^']+)'", error["ctx"]["expected"])
            close = difflib.get_close_matches(given, known, n=1, cutoff=0.75)
            shown += f"; did you mean {close[0]!r}?" if close else ""
        return self.complain(place, message[0].lower() + message[1:] + shown)

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self._nodes += 1
        if len(place) > _DEPTH:
            raise self._refused(node, place[:3], f"is nested more than {_DEPTH} levels deep")
        if self._nodes > _NODES:
            raise self._refused(node, place, f"the text grows beyond {_NODES:,} values; write it without aliases")
        if node.tag not in _PLAIN:
            return self._odd(node, place)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._lines[*place, index] = item.start_mark.line + 1
            return [self._value(item, (*place, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, place)

    def _scalar(self, node: yaml.Node, place: Place) -> Any:
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if plain and _EXPONENT.match(node.value):
            return float(node.value)
        if plain and node.tag.endswith((":int", ":float")):
            if len(node.value) > _DIGITS:
                raise self._refused(node, place, f"a number of {len(node.value)} digits; that cannot be meant")
            if _OTHER_BASE.match(node.value):
                raise self._refused(node, place, f"YAML reads {node.value} in base 2, 8, 16 or 60; write it in base 10")
        try:
            return self._loader.construct_object(node)
        except (ValueError, LookupError, yaml.YAMLError):  # LookupError: PyYAML's, for `!!bool x`
            raise self._refused(node, place, f"{node.value!r} is no {node.tag.rpartition(':')[2]}") from None

    def _odd(self, node: yaml.Node, place: Place) -> NoReturn:
        """Refuse a value that is no text, number, list or mapping."""
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "timestamp":
            message = f"{node.value} is read as a date; put it in quotes"
        elif kind in {"merge", "value"}:
            message = f"{node.value} is read as a YAML {kind} key; put it in quotes"
        else:
            shown = f"!!{kind}" if kind != node.tag else kind
            message = f"the tag {shown} is not read; write a plain value"
        raise self._refused(node, place, message)

    def _refused(self, node: yaml.Node, place: Place, message: str) -> InvalidInput:
        shown = ".".join(map(str, place))
        return InvalidInput(f"{self._name}:{node.start_mark.line + 1}: {f'{shown}: ' if shown else ''}{message}")

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refused(key_node, place, "a key is one word, no list and no mapping")
            key = str(key_node.value)
            here = (*place, key)
            if key == "<<" and key_node.style is None:
                raise self._refused(key_node, place, "merge keys (<<) are not read; write the keys out")
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


def unknown_key(key: str, known: Sequence[str]) -> str:
    """What is said of a key that nothing reads."""
    if not known:
        return "unknown key; none is known here"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key; did you mean {close[0]!r}?" if close else f"unknown key; known keys: {', '.join(known)}"


def walk(model: type[BaseModel], loc: Place) -> tuple[Place, list[str]]:
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
        if isinstance(part, int):
            continue  # an item of a list: its keys are those of the model the list holds
        known = list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []
        field = here.model_fields.get(str(part)) if known else None
        if field is None:
            here = None
        elif shapes := _shapes(field.annotation):
            here = shapes.get(str(parts.pop(0))) if parts else None
        else:
            here = _section_in(field.annotation)
            if typing.get_origin(field.annotation) is dict and parts:
                place = (*place, parts.pop(0))  # a key of the writer's own
    return place, known


def _shapes(annotation: Any) -> dict[str, type[BaseModel]]:
    """The shapes that a section may have, by what pydantic calls each: its tag, or its class where none has one."""
    found: dict[str, type[BaseModel]] = {}
    options = typing.get_args(annotation) if typing.get_origin(annotation) in {typing.Union, types.UnionType} else ()
    models = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
    if len(models) > 1:
        return {one.__name__: one for one in models}
    for option in options:
        tags = [extra.tag for extra in getattr(option, "__metadata__", ()) if isinstance(extra, Tag)]
        if tags:
            found[tags[0]] = typing.get_args(option)[0]
    return found


def _section_in(annotation: Any) -> Any:
    """The model in `Section` or `Section | None`."""
    options = typing.get_args(annotation) or (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _deepest_line(text: str) -> int:
    """The line with the deepest nesting of brackets or of indentation."""
    depth, deepest, at = 0, 0, 1
    for number, line in enumerate(text.splitlines(), start=1):
        depth += sum(line.count(opening) for opening in "[{")
        indented = depth + len(line) - len(line.lstrip())
        if indented > deepest:
            deepest, at = indented, number
        depth -= sum(line.count(closing) for closing in "]}")
    return at
