"""A recipe and those it extends, as one: values merged section by section, every error still in the file it stands in.

`extends: NAME` takes a recipe that comes with tuneloop, `extends: PATH` a file beside this one. The nearer file wins
key by key, with two exceptions: a section that changes its shape (`tuning.method`, `objective.kind`) is replaced whole,
for the old shape's keys mean nothing there; and of `run.steps` and `run.epochs` the nearer one displaces the other.
Paths to data are relative to the recipe that is run, wherever they stand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import cannot_read, is_file
from tuneloop.registry.plain_yaml import Place, PlainYaml
from tuneloop.registry.versions.artifacts import text_digest

READY = Path(__file__).parent / "ready"
EXTENDS = "extends"
_SHAPED_BY = {"tuning": ("method", "lora"), "objective": ("kind", "sft")}  # section → its key, and what it is unsaid
_ONE_OF = ("steps", "epochs")


class Layers:
    """The recipe that was named first, then the one it extends, and so on.

    Raises:
        InvalidInput: a file cannot be read or is no mapping, or they extend each other in a circle.
    """

    def __init__(self, path: Path) -> None:
        self._texts: list[str] = []
        self._documents: list[PlainYaml] = []
        self._paths: list[Path] = []
        next_path: Path | None = path
        while next_path is not None:
            next_path = self._read(next_path)
        self.values: dict[str, Any] = {}
        for document in reversed(self._documents):
            self.values = merged(self.values, {k: v for k, v in document.values.items() if k != EXTENDS})

    @property
    def own_text(self) -> str:
        """What stands in the file that was named."""
        return self._texts[0]

    @property
    def text(self) -> str:
        """One recipe that needs no other: the file's own text, or the merged values under the digests of all texts."""
        if len(self._texts) == 1:
            return self._texts[0]
        head = "".join(
            f"# {path.name}: {text_digest(text)}\n" for path, text in zip(self._paths, self._texts, strict=True)
        )
        body = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)
        return f"# Made of these recipes, each extending the next:\n{head}\n{body}"

    @property
    def errors(self) -> list[str]:
        """What is wrong, file by file, in order of line."""
        return [error for document in self._documents for error in document.errors]

    @contextmanager
    def within(self, place: Place) -> Iterator[None]:
        """Look for what is complained about below `place` first: the keys of a stage stand over the shared ones."""
        with ExitStack() as held:
            for document in self._documents:
                held.enter_context(document.within(place))
            yield

    def complain(self, place: Place, message: str) -> None:
        """Add an error about the value at `place`, in the file it comes from."""
        self._owner(place).complain(place, message)

    def add(self, error: ErrorDetails, model: type[BaseModel]) -> None:
        """Add one of pydantic's errors, in the file the value comes from."""
        self._owner(PlainYaml.place_of(error, model)).add(error, model)

    def _owner(self, place: Place) -> PlainYaml:
        return max(self._documents, key=lambda document: document.depth_of(place))  # the first of equals: the nearest

    def _read(self, path: Path) -> Path | None:
        """Read one layer; the path of the next, if there is one."""
        text = _read_text(path, self._paths[-1] if self._paths else None)
        if path.resolve() in [known.resolve() for known in self._paths]:
            circle = " → ".join(str(known) for known in [*self._paths, path])
            raise InvalidInput(f"{self._paths[-1]}: {EXTENDS}: the recipes extend each other in a circle: {circle}")
        document = PlainYaml(str(path), text, "a recipe: a mapping of sections (base, data, run, …)")
        self._texts.append(text)
        self._documents.append(document)
        self._paths.append(path)
        if EXTENDS not in document.values:
            return None
        parent = document.values[EXTENDS]
        if not isinstance(parent, str) or not parent:
            document.complain((EXTENDS,), f"give the name of a recipe, or a path to one (given: {parent!r})")
            return None
        named = READY / f"{parent}.yaml"
        return named if "/" not in parent and is_file(named) else path.parent / parent


def _read_text(path: Path, child: Path | None) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        names = sorted(known.stem for known in READY.glob("*.yaml"))
        if child is not None:
            wrong = cannot_read(path, error, f"give a path, or one of {', '.join(names)}")
            raise InvalidInput(f"{child}: {EXTENDS}: {wrong}") from None
        if str(path) in names and isinstance(error, FileNotFoundError):
            raise InvalidInput(
                f"{str(path)!r} is a ready recipe; `tuneloop recipe new my.yaml --like {path}`, then train that"
            ) from None
        raise cannot_read(path, error, f"`tuneloop recipe new {path}` writes one") from None


def merged(far: Mapping[str, Any], near: Mapping[str, Any], *, whole: Collection[Place] = ()) -> dict[str, Any]:
    """`near` over `far`, section by section and key by key; what stands at a place of `whole` is replaced as it is."""
    found = dict(far)
    for name, section in near.items():
        known = found.get(name)
        if not (isinstance(known, dict) and isinstance(section, dict)):
            found[name] = section
            continue
        key, unsaid = _SHAPED_BY.get(name, ("", ""))
        if (name,) in whole or (key in section and section[key] != known.get(key, unsaid)):
            found[name] = section
            continue
        if name == "run" and any(one in section for one in _ONE_OF):
            known = {one: value for one, value in known.items() if one not in _ONE_OF}
        found[name] = _deep(known, section, (name,), whole)
    return found


def _deep(far: dict[str, Any], near: dict[str, Any], place: Place, whole: Collection[Place]) -> dict[str, Any]:
    found = dict(far)
    for key, value in near.items():
        known, here = found.get(key), (*place, key)
        if isinstance(known, dict) and isinstance(value, dict) and here not in whole:
            found[key] = _deep(known, value, here, whole)
        else:
            found[key] = value
    return found
