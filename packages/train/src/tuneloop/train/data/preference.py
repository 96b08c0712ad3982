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
from typing import Any, Generic, TypeVar

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.data.files import Record
from tuneloop.train.data.formats import EmptyText, detect, parse, prompt_turns
from tuneloop.train.data.rows import Row, by_line, preference_line, refuse_all

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
        return preference_line(self.chosen.messages, self.rejected.answer)

    @property
    def looked_at(self) -> Row:
        """The row as the checks of data quality look at it."""
        return Row(self.chosen.messages, self.place, rejected=self.rejected.answer)


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

    @property
    def looked_at(self) -> Row:
        """The question as the checks of data quality look at it; what rewards read is left aside."""
        return Row(self.messages, self.place)


@dataclass
class Read(Generic[T]):
    """What was read of a file's records: the rows, and the faults of those that are none."""

    rows: list[T] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def preferences(records: Iterable[Record], source: str) -> tuple[PreferenceRow, ...]:
    """Records as preferences.

    Raises:
        InvalidInput: there are none, or rows are broken; each as `file:line: what is wrong`.
    """
    return _all(read_preferences(records, identical=False), source)


def read_preferences(records: Iterable[Record], *, identical: bool) -> Read[PreferenceRow]:
    """Records as preferences, the broken ones apart; `identical`: two equal answers are a row, and no fault."""
    return _each(records, lambda record: _preference(record, identical=identical))


def read_prompts(records: Iterable[Record]) -> Read[PromptRow]:
    """Records as questions, the broken ones apart."""
    return _each(records, _prompt)


def _all(read: Read[T], source: str) -> tuple[T, ...]:
    errors = sorted([*read.broken, *read.empty], key=by_line)
    refuse_all(errors, len(errors))
    if not read.rows:
        raise InvalidInput(f"{source}: holds no rows; write one JSON object a line")
    return tuple(read.rows)


def _each(records: Iterable[Record], read: Callable[[Record], T]) -> Read[T]:
    found = Read[T]()
    for record in records:
        try:
            if record.fields is None:
                raise ValueError(record.problem)
            found.rows.append(read(record))
        except EmptyText as error:
            found.empty.append(f"{record.place}: {error}")
        except ValueError as error:
            found.broken.append(f"{record.place}: {error}")
    return found


def _preference(record: Record, *, identical: bool) -> PreferenceRow:
    fields = record.fields or {}
    missing = [name for name in ("chosen", "rejected") if fields.get(name) is None]
    if len(missing) == 1:
        raise ValueError(f"lacks {missing[0]}: a preference has both chosen and rejected")
    kind = detect(fields)
    if kind != "preference":
        raise ValueError(f"holds no preference but a row of format {kind}; write prompt, chosen and rejected")
    if unread := set(fields) - {"prompt", "chosen", "rejected"}:
        raise ValueError(f"{', '.join(sorted(map(str, unread)))}: nothing reads it in a preference; remove it")
    parsed = parse(fields, answers_only=False)
    chosen, rejected = parsed.turns, parsed.rejected or ""
    if not identical and chosen[-1].content.strip() == rejected.strip():
        raise ValueError("chosen and rejected are the same answer: there is nothing to prefer")
    other = (*chosen[:-1], Message(role="assistant", content=rejected))
    return PreferenceRow(Row(chosen, record.place), Row(other, record.place), record.place)


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
