"""What a record says: the format of a row is detected by its fields, and told.

    instruction        {"instruction": "…", "input": "… (optional)", "output": "…"}
    chat               {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    prompt-completion  {"prompt": "…", "completion": "…"}, each a text or a list of turns
    preference         {"prompt": "… (optional)", "chosen": "…", "rejected": "…"}, each a text or a list of turns
    prompt             {"prompt": "…"}, a text or a list of turns

The first three teach an answer. The last two are for other objectives (`data.preference`); here they are recognised,
and read only where their text is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tuneloop.registry.nouns import Message

Format = Literal["instruction", "chat", "prompt-completion", "preference", "prompt"]
ANSWERS: frozenset[Format] = frozenset({"instruction", "chat", "prompt-completion"})
_ROLES = ("system", "user", "assistant")
# In this order: a row with `prompt`, `chosen` and `rejected` is a preference, whatever else it carries.
_FIELDS: dict[Format, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "preference": (("chosen", "rejected"), ("prompt",)),
    "chat": (("messages",), ()),
    "instruction": (("instruction", "output"), ("input",)),
    "prompt-completion": (("prompt", "completion"), ()),
    "prompt": (("prompt",), ()),
}
_WRITE = "write instruction/input/output, or messages, or prompt and completion"


class EmptyText(ValueError):
    """A row's question or answer is there, and blank."""


@dataclass(frozen=True)
class Parsed:
    """A record's format, its conversation, and the fields nothing reads."""

    format: Format
    turns: tuple[Message, ...]
    ignored: tuple[str, ...]
    input: str = ""  # of an instruction row, the text its question ends with
    rejected: str | None = None  # of a preference, the answer that is not preferred


def detect(record: Mapping[str, Any]) -> Format:
    """The format of a record by its fields; a field that is null is not there.

    Raises:
        ValueError: it is none of them; the message says what is missing.
    """
    given = {key for key, value in record.items() if value is not None}
    if len(given & {"chosen", "rejected"}) == 1:
        missing = "rejected" if "chosen" in given else "chosen"
        raise ValueError(f"lacks {missing} (it has {_known(record)}); a preference has both chosen and rejected")
    found: Format
    for found, (needed, _) in _FIELDS.items():
        if given.issuperset(needed):
            return found
    needed = ("prompt",) if "completion" in given else ("instruction", "output")
    missing = " and ".join(name for name in needed if name not in given)
    raise ValueError(f"lacks {missing} (it has {_known(record)}); {_WRITE}")


def parse(record: Mapping[str, Any], *, answers_only: bool = True) -> Parsed:
    """A record as one conversation.

    Args:
        record: the fields of a row.
        answers_only: refuse preferences and bare prompts; else a preference is read as the conversation with its
            chosen answer and the rejected one beside it, and a bare prompt as it stands.

    Raises:
        ValueError: the record cannot be used; `EmptyText` where a question or answer is blank.
    """
    kind = detect(record)
    if answers_only and kind not in ANSWERS:
        needs = "dpo or reward" if kind == "preference" else "grpo or ppo"
        fields = " and ".join(_FIELDS[kind][0])
        raise ValueError(
            f"is a {kind} row ({fields}), which teaches no answer: use it with objective.kind {needs}; for sft {_WRITE}"
        )
    needed, optional = _FIELDS[kind]
    ignored = tuple(sorted(shown(key) for key in record if key not in needed and key not in optional))
    rejected = None
    if kind == "instruction":
        turns = _instruction(record)
    elif kind == "chat":
        turns = conversation(record["messages"])
    elif kind == "prompt":
        turns = prompt_turns(record["prompt"])
    elif kind == "preference":
        turns, other = _answered(record, "chosen"), _answered(record, "rejected")
        if turns[:-1] != other[:-1]:
            raise ValueError(
                "chosen and rejected answer different conversations; they may differ in their last turn only"
            )
        rejected = other[-1].content
    else:
        turns = _answered(record, "completion")
    extra = record.get("input") if kind == "instruction" else None
    return Parsed(kind, turns, ignored, extra if isinstance(extra, str) and extra.strip() else "", rejected)


def conversation(value: Any, field: str = "messages") -> tuple[Message, ...]:
    """A list of turns that ends with the assistant's answer to a user.

    Raises:
        ValueError: it does not.
    """
    turns = _turns(value, field)
    if turns[-1].role != "assistant":
        raise ValueError("the last turn is not the assistant's: there is nothing to learn from it")
    if len(turns) < 2 or turns[-2].role != "user":
        raise ValueError("the assistant's last turn does not follow a user's")
    return turns


def prompt_turns(value: Any) -> tuple[Message, ...]:
    """`prompt`, a text or turns, as turns that end with a user's.

    Raises:
        ValueError: it does not.
    """
    if isinstance(value, list):
        turns = _turns(value, "prompt")
        if turns[-1].role != "user":
            raise ValueError("prompt does not end with a user's turn")
        return turns
    return (Message(role="user", content=text({"prompt": value}, "prompt")),)


def text(record: Mapping[str, Any], name: str, before: str = "") -> str:
    """A field's text, not blank, and such as every later step can write and tokenise.

    Raises:
        ValueError: it is no such text.
    """
    value = record.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{before}{name} is {type(value).__name__}, not text")
    if not value.strip():
        raise EmptyText(f"{before}{name} is empty")
    if "\0" in value:
        raise ValueError(f"{before}{name} holds a NUL character at position {value.index(chr(0)) + 1}; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{before}{name} holds half of a surrogate pair at character {error.start + 1}, which is no text; remove it"
        ) from None
    return value


def shown(name: object) -> str:
    """A field's name as any terminal and file can carry it."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def _known(record: Mapping[str, Any]) -> str:
    return ", ".join(map(shown, record)) or "nothing"


def _instruction(record: Mapping[str, Any]) -> tuple[Message, ...]:
    instruction, output = text(record, "instruction"), text(record, "output")
    extra = record.get("input")
    if extra is not None and not isinstance(extra, str):
        raise ValueError(f"input is {type(extra).__name__}, not text")
    asked = f"{instruction}\n\n{text(record, 'input')}" if extra and extra.strip() else instruction
    return Message(role="user", content=asked), Message(role="assistant", content=output)


def _answered(record: Mapping[str, Any], field: str) -> tuple[Message, ...]:
    """`prompt` with `completion`, or with `chosen`; either answer may be the whole conversation in turns."""
    value = record[field]
    asked = prompt_turns(record["prompt"]) if record.get("prompt") is not None else ()
    if not isinstance(value, list):
        answer = Message(role="assistant", content=text(record, field))
        if not asked:
            raise ValueError(f"lacks prompt: {field} is a text, and nothing says what it answers")
        return (*asked, answer)
    turns = _turns(value, field)
    whole = turns if turns[: len(asked)] == asked else (*asked, *turns)
    return conversation([turn.model_dump() for turn in whole], field)


def _turns(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{field} is not a list of turns")
    turns = []
    for index, turn in enumerate(value):
        if not isinstance(turn, Mapping) or turn.get("role") not in _ROLES:
            raise ValueError(f"{field}[{index}]: role must be one of {', '.join(_ROLES)}")
        if turn["role"] == "system" and index:
            raise ValueError(f"{field}[{index}]: a system turn stands first or not at all")
        turns.append(Message(role=turn["role"], content=text(turn, "content", f"{field}[{index}].")))
    return tuple(turns)
