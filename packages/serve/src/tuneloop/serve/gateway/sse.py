"""Server-sent events of an engine on their way to a client: framing, the model's name, the usage event; pure.

Events pass as the bytes they are. Two facts about JSON make searching in them safe: inside a string every quote is
escaped, so `"model":"m@2"` and `"choices":[]` can only be real members. Costs about 1 µs an event.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

MAX_EVENT_BYTES = 8_000_000
DONE = b"data: [DONE]"
_USAGE_MARK = b'"choices":[]'
_ERROR_MARK = b'data: {"error"'


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class EngineError(msgspec.Struct, frozen=True):
    """What vLLM says when it refuses or fails."""

    message: str
    param: str | None = None
    code: int | str | None = None

    @property
    def status(self) -> int:
        """vLLM's code is an HTTP status; anything else is a failure of the engine."""
        return self.code if isinstance(self.code, int) and 400 <= self.code < 600 else 500


class _WithUsage(msgspec.Struct):
    usage: Usage | None = None


class _WithError(msgspec.Struct):
    error: EngineError


_usage = msgspec.json.Decoder(_WithUsage)
_error = msgspec.json.Decoder(_WithError)


def usage_of(text: bytes) -> Usage | None:
    """The usage an answer or an event states, if it states one.

    Raises:
        ValueError: the text is not a JSON object.
    """
    return _usage.decode(text).usage


def error_of(text: bytes) -> EngineError:
    """The error a JSON text states; a text that is none becomes the message itself."""
    try:
        return _error.decode(text).error
    except msgspec.MsgspecError:
        return EngineError(message=text[:500].decode(errors="replace") or "no reason given")


@lru_cache(maxsize=1_024)
def name_member(name: str) -> bytes:
    """`"model":"…"` as an engine writes it."""
    return b'"model":' + msgspec.json.encode(name)


class Relay:
    """Turns an engine's bytes into the client's, and keeps what the record needs."""

    def __init__(self, *, engine_name: str, asked: str, wants_usage: bool, keep_bytes: int) -> None:
        self._from, self._to = name_member(engine_name), name_member(asked)
        self._wants_usage = wants_usage
        self._room = keep_bytes
        self._rest = b""
        self.kept: list[bytes] = []  # events that carry text, until `keep_bytes` are full
        self.usage: Usage | None = None
        self.events = 0  # passed on
        self.error: EngineError | None = None
        self.done = False  # the engine said that the answer is complete

    def push(self, chunk: bytes) -> bytes:
        """Take bytes as they come; returns the whole events among them, ready for the client.

        Raises:
            ValueError: an event without end, or one that claims to hold the usage and is no JSON.
        """
        if not self._rest and chunk.find(b"\n\n") == len(chunk) - 2 >= 0:  # one whole event, as engines write them
            if not self._passes(chunk[:-2]):
                return b""
            self.events += 1
            return chunk.replace(self._from, self._to, 1)
        events = (self._rest + chunk).split(b"\n\n")
        self._rest = events.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        passed = [event for event in events if self._passes(event)]
        self.events += len(passed)
        return b"".join([event.replace(self._from, self._to, 1) + b"\n\n" for event in passed])

    def _passes(self, event: bytes) -> bool:
        if event.startswith(DONE):
            self.done = True
        elif event.startswith(_ERROR_MARK):
            self.error = error_of(event[6:])
        elif _USAGE_MARK in event:
            self.usage = usage_of(event[6:])
            return self._wants_usage
        elif self._room > 0:
            self._room -= len(event)
            self.kept.append(event)
        return True
