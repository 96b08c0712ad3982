"""What a Responses request says, item by item: who said which text, and what no request may hold; pure.

An answer here stands on its request alone. What would stand on an earlier answer (`store`, `previous_response_id`,
`conversation`, `background`) is refused: the next request may be another engine's, which has never seen it. So is what
an engine would run or fetch by itself, and what is no text.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from tuneloop.serve.gateway.errors import bad_request

_KEPT = "no answer is kept for a later request, which another engine may answer; send the whole conversation as `input`"
REFUSED = {
    "store": _KEPT,
    "previous_response_id": _KEPT,
    "conversation": _KEPT,
    "background": f"{_KEPT}, and wait for the answer, or stream it",
    "prompt": "prompts are kept by who asks; send `instructions` and `input`",
    "previous_input_messages": "send all turns as `input`",
    "enable_response_messages": "its answer holds token ids, which cannot be masked",
}
ROLES = frozenset({"user", "assistant", "system", "developer"})
SAID_BY = {  # an item's type → who says what it holds; a message says it itself
    "function_call": "assistant",
    "custom_tool_call": "assistant",
    "reasoning": "assistant",
    "function_call_output": "tool",
    "custom_tool_call_output": "tool",
}
_CALLS = frozenset({"function_call", "custom_tool_call"})
_TOOLS = frozenset({"function", "custom", "namespace"})
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"})
BETWEEN_PARTS = "\n"  # as vLLM joins them


class Part(msgspec.Struct):
    """Of a message's content, or of what a tool put out."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct):
    """One item of the input: a message, unless its type says something else."""

    type: str | None = None
    role: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    content: str | list[Part] | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    name: Any = None  # of a call
    arguments: Any = None
    input: Any = None  # of a custom tool's call


class Tool(msgspec.Struct):
    """What a model may call."""

    type: str


def turns(given: str | list[Item] | None, instructions: str | None) -> tuple[tuple[str, str], ...]:
    """(role, text) of each turn, as a record keeps it: of calls nothing but that there was one, of reasoning nothing.

    Raises:
        ApiError: 400, there is no input, or it holds what is not taken here.
    """
    if not given:
        what = "missing" if given is None else "empty"
        raise bad_request(
            f"input: {what}; give a text, or a list of messages", param="input", code="missing_required_parameter"
        )
    first = [("system", instructions)] if instructions else []
    if isinstance(given, str):
        return (*first, ("user", given))
    said = [_turn(f"input[{number}]", item) for number, item in enumerate(given)]
    return (*first, *(turn for turn in said if turn is not None))


def unrecorded_chars(given: str | list[Item] | None) -> int:
    """How many characters a model reads that `turns` leaves out: of calls and of reasoning."""
    if not isinstance(given, list):
        return 0
    calls = [chars_in([item.name, item.arguments, item.input]) for item in given if item.type in _CALLS]
    thoughts = [
        len(_text("", item.content)) + len(_text("", item.summary)) for item in given if item.type == "reasoning"
    ]
    return sum(calls) + sum(thoughts)


def chars_in(value: Any) -> int:
    """How many characters the texts in a JSON value have."""
    found, rest = 0, [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str):
            found += len(one)
        elif isinstance(one, dict):
            rest += one.values()
        elif isinstance(one, list):
            rest += one
    return found


def check_tools(tools: list[Tool] | None) -> None:
    """A model may call what the client runs, and nothing that an engine would.

    Raises:
        ApiError: 400, it may not.
    """
    for number, tool in enumerate(tools or ()):
        if tool.type not in _TOOLS:
            message = f"tools[{number}]: {tool.type[:100]!r} is not offered here; a model may call your own functions"
            raise bad_request(message, param="tools", code="unsupported_parameter")


def _turn(where: str, item: Item) -> tuple[str, str] | None:
    kind = item.type or "message"
    if kind == "message":
        if item.role not in ROLES:
            roles = ", ".join(sorted(ROLES))
            raise bad_request(f"{where}.role: unknown, or missing; use one of {roles}", param="input")
        return item.role, _text(f"{where}.content", item.content)
    if kind not in SAID_BY:
        raise bad_request(
            f"{where}: items of type {kind[:100]!r} are not taken here; this gateway takes messages, function calls "
            "and what they gave, and reasoning",
            param="input",
        )
    if kind == "reasoning":
        _text(f"{where}.content", item.content)
        _text(f"{where}.summary", item.summary)
        return None
    return SAID_BY[kind], "" if kind in _CALLS else _text(f"{where}.output", item.output)


def _text(where: str, content: str | list[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in _TEXT_PARTS:
            raise bad_request(
                f"{where}: parts of type {part.type[:100]!r} are not allowed; this gateway takes text only",
                param="input",
            )
    return BETWEEN_PARTS.join(part.text or part.refusal or "" for part in content)
