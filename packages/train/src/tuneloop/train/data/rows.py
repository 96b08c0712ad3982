"""Rows: conversations that end with the assistant's answer, the same ones whichever way a file spells them.

A broken row is an error with its file and line, and all of a file's errors are reported at once.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.files import read_records
from tuneloop.train.data.formats import parse

SHOWN_ERRORS = 50


@dataclass(frozen=True)
class Row:
    """One conversation that ends with the assistant's answer."""

    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)  # where it was read, `file:line`

    @property
    def prompt(self) -> str:
        """Everything before the answer, a turn a line."""
        return "\n".join(message.content for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        """What the assistant is to say in the end."""
        return self.messages[-1].content

    def line(self) -> str:
        """The row as one canonical JSON line in chat format."""
        turns = [{"role": message.role, "content": message.content} for message in self.messages]
        return json.dumps({"messages": turns}, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class DataFile:
    """The rows of a file, with what a reader should know about them."""

    rows: tuple[Row, ...]
    formats: dict[str, int]
    ignored: dict[str, int]  # field → rows that carry it though nothing reads it


def read_rows(path: Path) -> DataFile:
    """Read a file of rows, all of them.

    Raises:
        InvalidInput: the file is missing or empty, or rows are broken; each as `file:line: what is wrong`.
    """
    rows: list[Row] = []
    errors: list[str] = []
    formats: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for record in read_records(path):
        try:
            if record.fields is None:
                raise ValueError(record.problem)
            parsed = parse(record.fields)
        except ValueError as error:
            errors.append(f"{record.place}: {error}")
            continue
        rows.append(Row(parsed.turns, record.place))
        formats[parsed.format] += 1
        ignored.update(parsed.ignored)
    refuse_all(errors, len(errors))
    if not rows:
        raise InvalidInput(f"{path}: holds no rows; write one JSON object a line")
    return DataFile(tuple(rows), dict(formats), dict(ignored))


def refuse_all(errors: list[str], count: int) -> None:
    """Raise InvalidInput with the first of `count` errors, if there are any."""
    if count:
        more = f"\n… and {count - SHOWN_ERRORS} more" if count > SHOWN_ERRORS else ""
        raise InvalidInput("\n".join(errors[:SHOWN_ERRORS]) + more)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as chat-format JSONL, row by row and whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            file.writelines(row.line() + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def data_digest(rows: Iterable[Row]) -> str:
    """`sha256:…` of the rows in order; the file's own format, spacing and extra fields do not count."""
    digest = sha256()
    for number, row in enumerate(rows):
        digest.update((b"\n" if number else b"") + row.line().encode())
    return f"sha256:{digest.hexdigest()}"
