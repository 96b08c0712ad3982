"""What somebody else's files say, read and quoted within bounds: no file of theirs decides how much memory, time or
message it takes to refuse it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import read_text

_MOST_JSON_BYTES = 2**26  # the largest tokenizers and indexes there are take half of it
_MOST_CHARACTERS = 100  # of one value in a message
DEEPEST = 16  # folders in folders
_TOLD = 3  # names in a message


def text_in(path: Path, then: str, *, most_bytes: int = _MOST_JSON_BYTES) -> str:
    """The text of a file.

    Args:
        path: the file.
        then: what the reader of a refusal can do.
        most_bytes: a larger one is not read.

    Raises:
        InvalidInput: it is larger, is no UTF-8, or cannot be read.
    """
    try:
        return read_text(path, most_bytes=most_bytes)
    except OSError as error:
        raise InvalidInput(f"{path.name} cannot be read ({error.strerror}); {then}") from None
    except ValueError as error:
        raise InvalidInput(f"{path.name} cannot be read ({shown(error)}); {then}") from None


def object_in(path: Path, then: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InvalidInput: it holds none, is larger than any such file, or cannot be read.
    """
    text = text_in(path, then)
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name} cannot be read ({shown(error)}); {then}") from None
    if not isinstance(loaded, dict):
        raise InvalidInput(f"{path.name} is no JSON object; {then}")
    return loaded


def quoted(value: object) -> str:
    """A value from a file, as messages give it."""
    return _cut(repr(value[: _MOST_CHARACTERS + 1] if isinstance(value, str) else value))


def shown(text: object) -> str:
    """A name from a file, or an error, as messages give it: without quotes, where no terminal minds it."""
    start = str(text)[: _MOST_CHARACTERS + 1]
    return _cut(start) if start.isprintable() else quoted(start)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def some(names: Iterable[str], most: int = _TOLD) -> str:
    """The first few of some names."""
    known = sorted(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return (", ".join(map(shown, known[:most])) or "nothing") + more


def entries(folder: Path, called: object | None = None) -> Iterator[Path]:
    """Everything below a folder; no link is followed.

    Args:
        folder: where.
        called: how messages call it; by default its path.

    Raises:
        InvalidInput: its folders are nested deeper than those of any model.
    """
    top = len(folder.parts)
    for here, folders, files in os.walk(folder):
        parent = Path(here)
        if folders and len(parent.parts) - top >= DEEPEST:
            raise InvalidInput(
                f"{called or folder}: its folders are nested more than {DEEPEST} deep, from "
                f"{shown(parent.relative_to(folder))} on; bring only the folder that save_pretrained wrote"
            )
        for name in (*folders, *files):
            yield parent / name
