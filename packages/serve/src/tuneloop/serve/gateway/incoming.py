"""The texts of a request that guards look at, each with who said it, and the request with some of them rewritten; pure.

Every text of a message counts, wherever it stands in it: in a template a tool call's arguments reach the model as the
content does. What a product team declares (tools, formats) is its own and not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tuneloop.serve.gateway.body import Ask
from tuneloop.serve.gateway.errors import bad_request
from tuneloop.serve.gateway.guard_worker import Finding

_SAID_BY = {"prompt": "prompt", "suffix": "prompt", "documents": "tool", "chat_template_kwargs": "user"}
_NO_TEXT = frozenset({"role", "type", "id", "tool_call_id"})
_IN_TEXT = frozenset({"secrets", "personal"})  # guards whose finds are places in the text
SEPARATE = "\n"


@dataclass(slots=True)
class Text:
    """One text, and where it stands: `inside[key]`."""

    role: str
    where: str  # `messages[3]`
    inside: Any
    key: str | int
    found: Sequence[Finding] = ()

    @property
    def text(self) -> str:
        """It."""
        text: str = self.inside[self.key]
        return text


class Incoming:
    """The texts of one request."""

    def __init__(self, ask: Ask, trusted: Sequence[str]) -> None:
        """Texts of `trusted` roles are left alone.

        Raises:
            ApiError: 400, a member is nested too deeply.
        """
        self._ask = ask
        self._members: dict[str, list[Any]] = {}  # name → its value, in a list of one: it may be a text itself
        self.texts: list[Text] = []
        for name in ("messages", *_SAID_BY):
            if (raw := ask.members.values.get(name)) is None:
                continue
            try:
                held = self._members[name] = [msgspec.json.decode(raw)]
                self.texts += (
                    _messages(held[0], trusted) if name == "messages" else _texts(held, 0, name, _SAID_BY[name])
                )
            except RecursionError:
                raise bad_request(f"{name}: nested too deeply", param=name) from None

    def changes(self, shown: Sequence[str]) -> dict[str, bytes]:
        """The members (name → JSON) in which texts differ from what is `shown` in their place."""
        touched = set()
        for text, instead in zip(self.texts, shown, strict=True):
            if instead != text.text:
                touched.add(text.where.partition("[")[0])
                text.inside[text.key] = instead
        return {name: msgspec.json.encode(self._members[name][0]) for name in touched}


def cleaned(text: str, found: Sequence[Finding], *, only_redact: bool) -> str:
    """The text with its secrets and personal data replaced: all of them, or those that the policy asks for."""
    spans = sorted(
        (one.start, one.end, one.kind.upper())
        for one in found
        if one.guard in _IN_TEXT
        and one.start is not None
        and one.end is not None
        and (one.action == "redact" or not only_redact)
    )
    parts, at = [], 0
    for start, end, kind in spans:
        if start >= at:
            parts += [text[at:start], f"<{kind}>"]
        at = max(at, end)
    return "".join([*parts, text[at:]])


def _messages(messages: Any, trusted: Sequence[str]) -> Iterator[Text]:
    for number, message in enumerate(messages):
        if (role := message["role"]) not in trusted:
            yield from _texts(messages, number, f"messages[{number}]", role)


def _texts(inside: Any, key: str | int, where: str, role: str) -> Iterator[Text]:
    value = inside[key]
    if isinstance(value, str):
        yield Text(role, where, inside, key)
    elif isinstance(value, dict):
        for name in value:
            if name not in _NO_TEXT:
                yield from _texts(value, name, where, role)
    elif isinstance(value, list):
        for place in range(len(value)):
            yield from _texts(value, place, where, role)
