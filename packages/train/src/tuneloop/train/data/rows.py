"""Rows: conversations that end with the assistant's answer, the same ones whichever way a file spells them.

A broken row is an error with its file and line, and all of a file's errors are reported at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import replacing
from tuneloop.registry.nouns import Message
from tuneloop.train.data.files import read_records
from tuneloop.train.data.formats import parse

SHOWN_ERRORS = 50


class Written(Protocol):
    """Any row that has a canonical line: conversations, preferences, questions."""

    def line(self) -> str:
        """The row as one JSON line."""


@dataclass(frozen=True)
class Row:
    """One conversation that ends with the assistant's answer; where rows are only looked at, also a bare question."""

    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)  # where it was read, `file:line`
    input: str = ""  # of an instruction row read with `inputs`, the text its question ends with
    group: str | None = field(default=None, compare=False)  # of an evaluation row, its value of `evaluate.slice_by`
    rejected: str | None = None  # of a preference that is looked at, the answer that is not preferred

    @property
    def answered(self) -> bool:
        """Whether it ends with an answer."""
        return self.messages[-1].role == "assistant"

    @property
    def prompt(self) -> str:
        """Everything before the answer, a turn a line."""
        return "\n".join(message.content for message in (self.messages[:-1] if self.answered else self.messages))

    @property
    def answer(self) -> str:
        """What the assistant is to say in the end; nothing in a bare question."""
        return self.messages[-1].content if self.answered else ""

    def line(self) -> str:
        """The row as one canonical JSON line in chat format; one with an input stays an instruction row."""
        if self.rejected is not None:
            return preference_line(self.messages, self.rejected)
        if self.input:
            instruction = self.messages[-2].content.removesuffix(f"\n\n{self.input}")
            fields = {"instruction": instruction, "input": self.input, "output": self.answer}
            return json.dumps(fields, ensure_ascii=False, sort_keys=True)
        return json.dumps({"messages": _turns(self.messages)}, ensure_ascii=False, sort_keys=True)


def preference_line(chosen: tuple[Message, ...], rejected: str) -> str:
    """A preference as one canonical JSON line, in turns."""
    fields = {
        "prompt": _turns(chosen[:-1]),
        "chosen": _turns(chosen[-1:]),
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@dataclass(frozen=True)
class DataFile:
    """The rows of a file, with what a reader should know about them."""

    rows: tuple[Row, ...]
    formats: dict[str, int]
    ignored: dict[str, int]  # field → rows that carry it though nothing reads it


def read_rows(path: Path, *, group_by: str | None = None, inputs: bool = False) -> DataFile:
    """Read a file of rows, all of them.

    Args:
        path: the file.
        group_by: a field whose value is kept as each row's `group`.
        inputs: remember what was the input of an instruction row, for the template that gives it a heading of its own.

    Raises:
        InvalidInput: the file is missing or empty, or rows are broken, each as `file:line: what is wrong`; or no row
            has the field to group by.
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
        rows.append(Row(parsed.turns, record.place, parsed.input if inputs else "", group_of(record.fields, group_by)))
        formats[parsed.format] += 1
        ignored.update(name for name in parsed.ignored if name != group_by)
    refuse_all(errors, len(errors))
    if not rows:
        raise InvalidInput(f"{path}: holds no rows; write one JSON object a line")
    require_groups(rows, group_by, ignored, str(path))
    return DataFile(tuple(rows), dict(formats), dict(ignored))


def group_of(record: Mapping[str, Any], group_by: str | None) -> str | None:
    """A record's value of the field to slice by; None where it has none."""
    value = record.get(group_by) if group_by is not None else None
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def require_groups(rows: Iterable[Row], group_by: str | None, fields: Iterable[str], source: str) -> None:
    """Refuse a field to slice by that no row has.

    Raises:
        InvalidInput: naming the fields there are.
    """
    if group_by is not None and all(row.group is None for row in rows):
        known = ", ".join(fields) or "none"
        raise InvalidInput(
            f"{source}: evaluate.slice_by {group_by!r}: no row has that field (fields to slice by: {known})"
        )


def refuse_all(errors: list[str], count: int) -> None:
    """Raise InvalidInput with the first of `count` errors, if there are any."""
    if count:
        more = f"\n… and {count - SHOWN_ERRORS} more" if count > SHOWN_ERRORS else ""
        raise InvalidInput("\n".join(errors[:SHOWN_ERRORS]) + more)


def by_line(error: str) -> tuple[str, int]:
    """What orders faults, `file:line: what`, by file and line."""
    name, _, rest = error.partition(":")
    number = rest.partition(":")[0]
    return name, int(number) if number.isdecimal() else 0


def write_rows(path: Path, rows: Iterable[Written]) -> None:
    """Write rows as JSONL, each as its canonical line; row by row, and whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.writelines(f"{row.line()}\n".encode() for row in rows)


def data_digest(rows: Iterable[Written]) -> str:
    """`sha256:…` of the rows in order; the file's own format, spacing and extra fields do not count."""
    digest = sha256()
    for number, row in enumerate(rows):
        digest.update((b"\n" if number else b"") + row.line().encode())
    return f"sha256:{digest.hexdigest()}"
