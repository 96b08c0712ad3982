"""What the readers of bias sets share: lines and columns of a file, errors that name them, and how many templates are
kept."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tuneloop.monitor.bias.templates import Attribute, Template
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import cannot_read

MOST = 200  # observations of an attribute
_PER_SOURCE = 8  # templates of one observation, as many of either side; more of the same question tell little more
Item = TypeVar("Item")


@dataclass(frozen=True)
class Line:
    """A line of a file, to be told of."""

    path: Path
    number: int

    def wrong(self, what: str) -> InvalidInput:
        """What is wrong with it."""
        return InvalidInput(f"{self.path}:{self.number}: {what}")


def lines(path: Path) -> Iterator[tuple[Line, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error, "give --set a file of the set, as its authors publish it") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield Line(path, number), line


def table(path: Path, needed: Sequence[str]) -> Iterator[tuple[Line, dict[str, str]]]:
    """Rows of a file of columns set apart by tabs."""
    header: list[str] | None = None
    for line, text in lines(path):
        cells = next(csv.reader([text], delimiter="\t", quoting=csv.QUOTE_NONE))
        if header is None:
            header = [cell.strip() for cell in cells]
            if lacking := [name for name in needed if name not in header]:
                raise line.wrong(f"no column {', '.join(lacking)}; the first line names {', '.join(needed)}")
        elif len(cells) != len(header):
            raise line.wrong(f"{len(cells)} columns where the first line names {len(header)}")
        else:
            yield line, dict(zip(header, cells, strict=True))


def attribute_of(path: Path, people: Sequence[dict[str, str]], templates: Sequence[Template]) -> Attribute:
    """Of at most MOST observations, spread evenly over the file, and _PER_SOURCE templates of each.

    Templates of one observation say what is expected of one side and what of the other, often in turn: each side is
    spread by itself, so that none is left out and what makes one of two names likelier cancels.
    """
    sources: dict[str, list[Template]] = {}
    for template in templates:
        sources.setdefault(template.source or template.id, []).append(template)
    if not sources:
        raise InvalidInput(f"{path}: no sentence of it can be paired, or nothing is said after its pronouns")
    kept = _spread(list(sources.values()), MOST)
    return Attribute(people=people, templates=[one for of in kept for one in _of_either_side(of)])


def _of_either_side(templates: Sequence[Template]) -> list[Template]:
    sides: dict[str, list[int]] = {}
    for index, template in enumerate(templates):
        sides.setdefault(template.stereotype, []).append(index)
    kept = sorted(index for side in sides.values() for index in _spread(side, _PER_SOURCE // len(sides)))
    return [templates[index] for index in kept]


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)
