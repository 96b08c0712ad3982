"""Changing top-level members of a JSON object without re-serialising it: a long prompt is never encoded again.

msgspec validates the whole text and hands back each value's raw bytes; walking over the top-level members with those
lengths gives their exact positions, so no nested or escaped key can be taken for a top-level one. Duplicate keys are
refused, because two readers of one text could then disagree on what it says.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEY = msgspec.json.Decoder(str)
_SPACE = b" \t\n\r"


class DuplicateKey(ValueError):
    """A key stands twice at the top level."""


class Members(msgspec.Struct, frozen=True):
    """A JSON object's text with its top-level values and where they begin."""

    text: bytes
    values: Mapping[str, msgspec.Raw]
    starts: Mapping[str, int]

    def replaced(self, changes: Mapping[str, bytes]) -> bytes:
        """The text with the values of `changes` (key → JSON) put in; keys it does not have yet are appended."""
        if len(changes) == 1:  # as a rule: the model
            ((key, value),) = changes.items()
            if (start := self.starts.get(key)) is not None:
                return b"%b%b%b" % (self.text[:start], value, self.text[start + len(self.values[key]) :])
        parts: list[bytes | memoryview] = []
        text, at = memoryview(self.text), 0
        for key in sorted(changes.keys() & self.starts.keys(), key=self.starts.__getitem__):
            parts += (text[at : self.starts[key]], changes[key])
            at = self.starts[key] + len(self.values[key])
        if new := changes.keys() - self.starts.keys():
            end = self.text.rindex(b"}")
            added = b",".join(msgspec.json.encode(key) + b":" + changes[key] for key in changes if key in new)
            parts += (text[at:end], b"," if self.values else b"", added, text[end:])
        else:
            parts.append(text[at:])
        return b"".join(parts)


def members(text: bytes) -> Members:
    """Take a JSON object apart at its top level.

    Raises:
        DuplicateKey: a key stands twice.
        ValueError: not a JSON object, or not UTF-8 (msgspec's own errors are ValueErrors too).
        RecursionError: nested too deeply.
    """
    str(text, "utf-8")  # msgspec does not look inside the strings it only passes over
    values = _MEMBERS.decode(text)
    starts = _as_commonly_written(text, values)
    return Members(text, values, _walked(text, values) if starts is None else starts)


def _as_commonly_written(text: bytes, values: Mapping[str, msgspec.Raw]) -> dict[str, int] | None:
    """Where the values begin if the object is written as JSON libraries write one, with plain keys and a space after
    each `:` and `,` or none; None: walk over it."""
    return _as_written(text, values, b'":', b',"') or _as_written(text, values, b'": ', b', "')


def _as_written(text: bytes, values: Mapping[str, msgspec.Raw], colon: bytes, comma: bytes) -> dict[str, int] | None:
    starts: dict[str, int] = {}
    at, opening = 0, b'{"'
    for key, raw in values.items():  # each in the place where its key stood first
        name = opening + key.encode() + colon if key.isidentifier() else b"\n"
        if not text.startswith(name, at):
            return None
        at += len(name)
        if not text.startswith(raw, at):
            return None  # it stands twice
        starts[key] = at
        at += len(raw)
        opening = comma
    return starts if text.startswith(b"}", at) and at == len(text) - 1 else None  # else there are more than it holds


def _walked(text: bytes, values: Mapping[str, msgspec.Raw]) -> dict[str, int]:
    """Where the values begin, however the object is written."""
    starts: dict[str, int] = {}
    at = _skip_space(text, text.index(b"{") + 1)
    while text[at] != ord("}"):
        key, at = _key(text, at)
        at = _skip_space(text, at)  # at the colon
        at = _skip_space(text, at + 1)  # at the value
        raw = values[key]
        # Of duplicates `values` holds the last: then the key comes back, or its value is not what stands here.
        if key in starts or not text.startswith(raw, at):
            raise DuplicateKey(key)
        starts[key] = at
        at = _skip_space(text, at + len(raw))
        if text[at] == ord(","):
            at = _skip_space(text, at + 1)
        elif text[at] != ord("}"):
            raise DuplicateKey(key)
    return starts


def _key(text: bytes, at: int) -> tuple[str, int]:
    """The key that begins at `at`, and where it ends."""
    end = text.index(b'"', at + 1)
    if b"\\" in text[at:end]:  # a quote may be escaped
        end = at + 1
        while text[end] != ord('"'):
            end += 2 if text[end] == ord("\\") else 1
    return _KEY.decode(text[at : end + 1]), end + 1


def _skip_space(text: bytes, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at
