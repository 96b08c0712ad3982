"""The texts of a request that guards look at, each with who said it, and the request with some of them rewritten; pure.

Every text of a message counts, wherever it stands in it: in a template a tool call's arguments reach the model as the
content does, and a template may print the names of what is nested. A content of several parts is made one text, which
is what a model reads: each part by itself may be harmless. What a product team declares (tools, formats) is its own and
not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tuneloop.serve.gateway.body import MEMBER, ROLES, Ask, Endpoint
from tuneloop.serve.gateway.embeddings import MOST_TEXTS
from tuneloop.serve.gateway.errors import bad_request
from tuneloop.serve.gateway.guard_worker import Finding
from tuneloop.serve.gateway.responses.items import BETWEEN_PARTS, SAID_BY
from tuneloop.serve.guards.verdict import replaced

_SAID_BY = {"prompt": "prompt", "suffix": "prompt", "documents": "tool", "chat_template_kwargs": "user"}
_SAID_TOO: dict[Endpoint, dict[str, str]] = {
    "chat": {"messages": ""},  # each says by whom
    "completion": {},
    "response": {"instructions": "system", "input": "user"},
    "embedding": {"input": "user"},
}
_NO_TEXT = frozenset({"role", "type", "id", "tool_call_id"})  # of a message, and of each of its tool calls
_NO_TEXT_OF_ITEMS = _NO_TEXT | {"call_id", "status"}
_PARTED = frozenset({"content", "output", "summary"})  # of an item: texts in parts
_IN_TEXT = frozenset({"secrets", "personal"})  # guards whose finds are places in the text
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,24}")  # says nothing that would be worth a look


@dataclass(slots=True)
class Text:
    """One text, and where it stands: `inside[key]`."""

    role: str
    where: str  # `messages[3]`
    inside: Any
    key: str | int
    found: Sequence[Finding] = ()
    is_name: bool = False  # of a member: nothing can be put in its place

    @property
    def text(self) -> str:
        """It."""
        text: str = self.inside[self.key]
        return text


class Incoming:
    """The texts of one request."""

    def __init__(self, ask: Ask, endpoint: Endpoint, trusted: Sequence[str]) -> None:
        """Texts of `trusted` roles are left alone.

        Raises:
            ApiError: 400, a member is nested too deeply, a role is unknown, or there are too many texts.
        """
        self.member = MEMBER[endpoint]
        self._ask = ask
        self._members: dict[str, list[Any]] = {}  # name → its value, in a list of one: it may be a text itself
        self.texts: list[Text] = []
        self._joined = False
        for name, role in (_SAID_TOO[endpoint] | _SAID_BY).items():
            by_item = endpoint == "response" and name == "input"  # then an item says who said it
            if (raw := ask.members.values.get(name)) is None or (role in trusted and not by_item):
                continue
            try:
                held = self._members[name] = [msgspec.json.decode(raw)]
                if name == "messages":
                    self.texts += self._messages(held[0], trusted)
                elif by_item and isinstance(held[0], list):
                    self.texts += self._items(held[0], trusted)
                elif role not in trusted:
                    self.texts += _texts(held, 0, name, role)
            except RecursionError:
                raise bad_request(f"{name}: nested too deeply", param=name) from None
            if len(self.texts) > MOST_TEXTS:
                raise bad_request(f"{name}: more than {MOST_TEXTS} texts in one request; send fewer", param=name)

    def changes(self, shown: Sequence[str]) -> dict[str, bytes]:
        """The members (name → JSON) in which texts differ from what is `shown` in their place."""
        touched = {self.member} if self._joined else set()
        for text, instead in zip(self.texts, shown, strict=True):
            if instead != text.text and not text.is_name:
                touched.add(text.where.partition("[")[0])
                text.inside[text.key] = instead
        return {name: msgspec.json.encode(self._members[name][0]) for name in touched}

    def _messages(self, messages: Any, trusted: Sequence[str]) -> Iterator[Text]:
        for number, message in enumerate(messages):
            where, role = f"messages[{number}]", message["role"]
            if role in trusted:
                continue
            if role not in ROLES:  # a template may show it to the model
                raise bad_request(f"{where}.role: unknown; use one of {', '.join(sorted(ROLES))}", param="messages")
            for name, value in message.items():
                if name == "content" and isinstance(value, list):
                    for part in self._one_part(message):
                        yield from _members(part, where, role, without={"type"})
                elif name == "tool_calls" and isinstance(value, list):
                    for place, call in enumerate(value):
                        if isinstance(call, dict):
                            yield from _members(call, where, role, without=_NO_TEXT)
                        else:
                            yield from _texts(value, place, where, role)
                elif name not in _NO_TEXT:
                    yield from _texts(message, name, where, role)

    def _items(self, items: list[dict[str, Any]], trusted: Sequence[str]) -> Iterator[Text]:
        """Of a response's input: what an item is decides who says what it holds, before the role it names."""
        for number, item in enumerate(items):
            where = f"input[{number}]"
            role = SAID_BY.get(item.get("type") or "message") or item["role"]
            if role in trusted:
                continue
            for name, value in item.items():
                if name in _PARTED and isinstance(value, list):
                    for part in self._one_part_of_item(item, name, role):
                        yield from _members(part, where, role, without={"type"})
                elif name not in _NO_TEXT_OF_ITEMS:
                    yield from _texts(item, name, where, role)

    def _one_part_of_item(self, item: dict[str, Any], name: str, role: str) -> list[dict[str, Any]]:
        """The parts of an item's content, or of what a tool put out, made one."""
        parts: list[dict[str, Any]] = item[name]
        if len(parts) > 1:
            text = BETWEEN_PARTS.join(part.get("text") or part.get("refusal") or "" for part in parts)
            if item.get("type") == "reasoning":
                made: dict[str, Any] = {"type": parts[0]["type"]}
            elif role == "assistant":
                made = {"type": "output_text", "annotations": []}
            else:
                made = {"type": "input_text"}
            item[name] = parts = [made | {"text": text}]
            self._joined = True
        return parts

    def _one_part(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The parts of a message's content, made one."""
        parts: list[dict[str, Any]] = message["content"]
        if len(parts) > 1:
            text = BETWEEN_PARTS.join(part.get(part["type"]) or "" for part in parts)
            message["content"] = parts = [{"type": "text", "text": text}]
            self._joined = True
        return parts


def cleaned(text: str, found: Sequence[Finding], *, only_redact: bool) -> str:
    """The text with its secrets and personal data replaced: all of them, or those that the policy asks for."""
    placed = (one for one in found if one.guard in _IN_TEXT and (one.action == "redact" or not only_redact))
    return replaced(text, ((o.start, o.end, o.kind) for o in placed if o.start is not None and o.end is not None))


def _members(inside: dict[str, Any], where: str, role: str, *, without: Collection[str]) -> Iterator[Text]:
    for name in inside:
        if name not in without:
            yield from _texts(inside, name, where, role)
            if not _PLAIN_NAME.fullmatch(name):
                yield Text(role, where, [name], 0, is_name=True)


def _texts(inside: Any, key: str | int, where: str, role: str) -> Iterator[Text]:
    value = inside[key]
    if isinstance(value, str):
        yield Text(role, where, inside, key)
    elif isinstance(value, dict):
        yield from _members(value, where, role, without=())
    elif isinstance(value, list):
        for place in range(len(value)):
            yield from _texts(value, place, where, role)
