"""Training and evaluation rows from JSONL files: instruction rows and chat rows become the same conversations.

    {"instruction": "…", "input": "… (optional)", "output": "…"}
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}

A broken line is an error with its file and line, and all of a file's errors are reported at once.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tuneloop.registry.artifacts import text_digest
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.formats import parse
from tuneloop.train.data.near import normal

_ROLES = ("system", "user", "assistant")
SHOWN_ERRORS = 50


class Written(Protocol):
    """Any row that has a canonical line: conversations, preferences, questions."""

    def line(self) -> str:
        """The row as one JSON line."""


@dataclass(frozen=True)
class Row:
    """One conversation that ends with the assistant's answer."""

    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)  # where it was read, `file:line`
    input: str = ""  # of an instruction row, the text its question ends with
    group: str | None = field(default=None, compare=False)  # of an evaluation row, its value of `evaluate.slice_by`

    @property
    def prompt(self) -> str:
        """Everything before the answer, a turn a line."""
        return "\n".join(message.content for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        """What the assistant is to say in the end."""
        return self.messages[-1].content

    def line(self) -> str:
        """The row as one canonical JSON line in chat format; one with an input stays an instruction row."""
        if self.input:
            instruction = self.messages[-2].content.removesuffix(f"\n\n{self.input}")
            fields = {"instruction": instruction, "input": self.input, "output": self.answer}
            return json.dumps(fields, ensure_ascii=False, sort_keys=True)
        turns = [{"role": message.role, "content": message.content} for message in self.messages]
        return json.dumps({"messages": turns}, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class DataFile:
    """The rows of a file, with what a reader should know about them."""

    rows: tuple[Row, ...]
    formats: dict[str, int]
    ignored: dict[str, int]  # field → rows that carry it though nothing reads it


@dataclass(frozen=True)
class DataSummary:
    """What `tuneloop data check` reports."""

    rows: int
    formats: dict[str, int]
    ignored: dict[str, int]
    turns: int
    prompt_words: tuple[int, float, int]  # least, median, most
    answer_words: tuple[int, float, int]
    duplicate_rows: int
    repeated_prompts: int  # prompts that occur again with another answer
    digest: str


def read_rows(path: Path, *, group_by: str | None = None) -> DataFile:
    """Read a JSONL file.

    Args:
        path: the file.
        group_by: a field whose value is kept as each row's `group`.

    Raises:
        InvalidInput: the file is missing or empty, or lines are broken; each as `file:line: what is wrong`.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from None
    rows: list[Row] = []
    errors: list[str] = []
    formats: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            kind, messages, extra, given = _parse(line)
        except ValueError as error:
            errors.append(f"{path}:{number}: {error}")
            continue
        rows.append(Row(messages, f"{path}:{number}", given, group=group_of(json.loads(line), group_by)))
        formats[kind] += 1
        ignored.update(name for name in extra if name != group_by)
    if errors:
        more = f"\n… and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise InvalidInput("\n".join(errors[:SHOWN_ERRORS]) + more)
    if not rows:
        raise InvalidInput(f"{path}: holds no rows; write one JSON object a line")
    if group_by is not None and all(row.group is None for row in rows):
        known = ", ".join(ignored) or "none"
        raise InvalidInput(
            f"{path}: evaluate.slice_by {group_by!r}: no row has that field (fields to slice by: {known})"
        )
    return DataFile(tuple(rows), dict(formats), dict(ignored))


def group_of(record: Mapping[str, Any], group_by: str | None) -> str | None:
    """A record's value of the field to slice by; None where it has none."""
    value = record.get(group_by) if group_by is not None else None
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_rows(path: Path, rows: Iterable[Written]) -> None:
    """Write rows as JSONL, each as its canonical line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row.line() + "\n" for row in rows), encoding="utf-8")


def data_digest(rows: Iterable[Written]) -> str:
    """`sha256:…` of the rows in order; the file's own format, spacing and extra fields do not count."""
    return text_digest("\n".join(row.line() for row in rows))


def summarise(data: DataFile) -> DataSummary:
    """Counts, lengths and duplicates of a file."""
    whole = Counter(normal(row.prompt) + "\0" + normal(row.answer) for row in data.rows)
    prompts = Counter(key.split("\0")[0] for key in whole)
    return DataSummary(
        rows=len(data.rows),
        formats=data.formats,
        ignored=data.ignored,
        turns=sum(len(row.messages) for row in data.rows),
        prompt_words=_spread([len(row.prompt.split()) for row in data.rows]),
        answer_words=_spread([len(row.answer.split()) for row in data.rows]),
        duplicate_rows=len(data.rows) - len(whole),
        repeated_prompts=sum(1 for count in prompts.values() if count > 1),
        digest=data_digest(data.rows),
    )


def _spread(values: Sequence[int]) -> tuple[int, float, int]:
    return min(values), float(statistics.median(values)), max(values)


def _parse(line: bytes) -> tuple[str, tuple[Message, ...], list[str], str]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    if not isinstance(value, dict):
        raise ValueError("a row is a JSON object, {…}")
    if "messages" in value:
        return "chat", _conversation(value["messages"]), sorted(set(value) - {"messages"}), ""
    if "completion" in value:
        parsed = parse(value)
        return parsed.format, parsed.turns, list(parsed.ignored), ""
    missing = [name for name in ("instruction", "output") if name not in value]
    if missing:
        known = ", ".join(map(str, value)) or "nothing"
        raise ValueError(f"lacks {' and '.join(missing)} (it has {known}); write instruction/input/output, or messages")
    instruction, output = _text(value, "instruction"), _text(value, "output")
    extra = value.get("input", "")
    if not isinstance(extra, str):
        raise ValueError(f"input is {type(extra).__name__}, not text")
    extra = extra if extra.strip() else ""
    asked = f"{instruction}\n\n{extra}" if extra else instruction
    turns = (Message(role="user", content=asked), Message(role="assistant", content=output))
    return "instruction", turns, sorted(set(value) - {"instruction", "input", "output"}), extra


def _conversation(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages is not a list of turns")
    turns = []
    for index, turn in enumerate(value):
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            raise ValueError(f"messages[{index}]: role must be one of {', '.join(_ROLES)}")
        if turn["role"] == "system" and index:
            raise ValueError(f"messages[{index}]: a system turn stands first or not at all")
        turns.append(Message(role=turn["role"], content=_text(turn, "content", f"messages[{index}].")))
    if turns[-1].role != "assistant":
        raise ValueError("the last turn is not the assistant's: there is nothing to learn from it")
    if len(turns) < 2 or turns[-2].role != "user":
        raise ValueError("the assistant's last turn does not follow a user's")
    return tuple(turns)


def _text(value: dict[str, Any], name: str, before: str = "") -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{before}{name} is {type(text).__name__}, not text")
    if not text.strip():
        raise ValueError(f"{before}{name} is empty")
    return text
