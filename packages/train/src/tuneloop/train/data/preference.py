"""Rows that teach no single answer: preferences between two, and questions alone.

    {"prompt": "…", "chosen": "…", "rejected": "…"}      each a text or a list of turns; without prompt, chosen and
                                                         rejected are whole conversations that differ in their end
    {"prompt": "…", "answer": "…", …}                    a text or turns; other fields go to the reward functions

Questions are also read from rows that hold an answer: it is left aside, and reward functions find it as `answer`. A
broken row is an error with its file and line, and all of a file's errors are reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.files import Record
from tuneloop.train.data.formats import detect, parse, prompt_turns
from tuneloop.train.data.rows import SHOWN_ERRORS, Row

T = TypeVar("T")
_ANSWER = "answer"


@dataclass(frozen=True)
class PreferenceRow:
    """One question with the answer that is preferred and one that is not; the two are alike up to their last turn."""

    chosen: Row
    rejected: Row
    place: str = field(default="", compare=False)

    def line(self) -> str:
        """The row as one canonical JSON line, in turns."""
        fields = {
            "prompt": _turns(self.chosen.messages[:-1]),
            "chosen": _turns(self.chosen.messages[-1:]),
            "rejected": _turns(self.rejected.messages[-1:]),
        }
        return json.dumps(fields, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class PromptRow:
    """One question, to be answered by the policy itself; the row's other fields are for the reward functions."""

    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    def line(self) -> str:
        """The row as one canonical JSON line, in turns."""
        fields = {**self.fields, "prompt": _turns(self.messages)}
        return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def preferences(records: Iterable[Record], source: str) -> tuple[PreferenceRow, ...]:
    """Records as preferences.

    Raises:
        InvalidInput: there are none, or rows are broken; each as `file:line: what is wrong`.
    """
    return _each(records, source, _preference)


def prompts(records: Iterable[Record], source: str) -> tuple[PromptRow, ...]:
    """Records as questions; raises as `preferences`."""
    return _each(records, source, _prompt)


def _each(records: Iterable[Record], source: str, read: Callable[[Record], T]) -> tuple[T, ...]:
    rows: list[T] = []
    errors: list[str] = []
    for record in records:
        try:
            if record.fields is None:
                raise ValueError(record.problem)
            rows.append(read(record))
        except ValueError as error:
            errors.append(f"{record.place}: {error}")
    if errors:
        more = f"\n… and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise InvalidInput("\n".join(errors[:SHOWN_ERRORS]) + more)
    if not rows:
        raise InvalidInput(f"{source}: holds no rows; write one JSON object a line")
    return tuple(rows)


def _preference(record: Record) -> PreferenceRow:
    fields = record.fields or {}
    missing = [name for name in ("chosen", "rejected") if fields.get(name) is None]
    if len(missing) == 1:
        raise ValueError(f"lacks {missing[0]}: a preference has both chosen and rejected")
    kind = detect(fields)
    if kind != "preference":
        raise ValueError(f"holds no preference but a row of format {kind}; write prompt, chosen and rejected")
    if unread := set(fields) - {"prompt", "chosen", "rejected"}:
        raise ValueError(f"{', '.join(sorted(map(str, unread)))}: nothing reads it in a preference; remove it")
    chosen = parse(fields, answers_only=False).turns
    rejected = parse({**fields, "chosen": fields["rejected"]}, answers_only=False).turns
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected answer different conversations; they may differ in their last turn only")
    if chosen[-1].content.strip() == rejected[-1].content.strip():
        raise ValueError("chosen and rejected are the same answer: there is nothing to prefer")
    return PreferenceRow(Row(chosen, record.place), Row(rejected, record.place), record.place)


def _prompt(record: Record) -> PromptRow:
    fields = dict(record.fields or {})
    kind = detect(fields)
    if kind == "prompt":
        return PromptRow(prompt_turns(fields.pop("prompt")), fields, record.place)
    turns = parse(fields, answers_only=False).turns
    rest = {name: value for name, value in fields.items() if name not in _READ[kind]}
    return PromptRow(turns[:-1], {_ANSWER: turns[-1].content} | rest, record.place)


_READ: dict[str, frozenset[str]] = {
    "chat": frozenset({"messages"}),
    "instruction": frozenset({"instruction", "input", "output"}),
    "prompt-completion": frozenset({"prompt", "completion"}),
    "preference": frozenset({"prompt", "chosen", "rejected"}),
}


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
