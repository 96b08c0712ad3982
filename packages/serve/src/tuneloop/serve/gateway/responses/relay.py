"""Events of the Responses API on their way to a client: when an answer begins and ends, its model's name, its usage.

An engine announces an answer (`response.created`) before it has begun to read the prompt. What is announced waits for
the first event that says something, so that another engine may still be tried. The last event holds the whole response
again, and the usage; there is no `[DONE]`.
"""

from __future__ import annotations

import msgspec

from tuneloop.serve.gateway.responses.events import data_of
from tuneloop.serve.gateway.splice import members
from tuneloop.serve.gateway.sse import MAX_EVENT_BYTES, EngineError, Relay, Usage

ANNOUNCED = frozenset({"response.created", "response.queued", "response.in_progress"})
LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
SAYS = "response.output_text.delta"
_NONE = msgspec.Raw(b"null")


class _Used(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Response(msgspec.Struct):
    usage: _Used | None = None
    error: EngineError | None = None


class _Event(msgspec.Struct):
    type: str = ""
    response: msgspec.Raw = _NONE
    error: EngineError | None = None
    message: str | None = None  # of an error that is told without `error`


_response = msgspec.json.Decoder(_Response)
_event = msgspec.json.Decoder(_Event)


def usage_of(text: bytes) -> Usage | None:
    """The usage a whole response states, if it states one.

    Raises:
        ValueError: the text is not a JSON object.
    """
    try:
        used = _response.decode(text).usage
    except RecursionError:  # what a client declares comes back in it
        raise ValueError("nested too deeply") from None
    return None if used is None else Usage(used.input_tokens, used.output_tokens)


def renamed(text: bytes, _name: str, asked: str) -> bytes:
    """A whole response with the model's name as the client asked for it; its metadata may hold a `model` too.

    Raises:
        ValueError: the text is not a JSON object.
    """
    found = members(text)
    return found.replaced({"model": msgspec.json.encode(asked)}) if "model" in found.values else text


def _read(data: bytes) -> _Event:
    try:
        return _event.decode(data)
    except RecursionError:
        raise ValueError("an event that is nested too deeply") from None


class ResponseRelay(Relay):
    """Turns an engine's bytes into the client's, and keeps what the record needs."""

    def __init__(self, *, engine_name: str, asked: str, wants_usage: bool, keep_bytes: int) -> None:
        super().__init__(engine_name=engine_name, asked=asked, wants_usage=wants_usage, keep_bytes=keep_bytes)
        self._asked = asked
        self._waiting: list[bytes] = []  # what was announced
        self._has_begun = False

    def push(self, chunk: bytes) -> bytes:
        """Take bytes as they come; returns the whole events among them, ready for the client.

        Raises:
            ValueError: an event without end, or one that is no JSON.
        """
        events = (self._rest + chunk).split(b"\n\n")
        self._rest = events.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        shown: list[bytes] = []
        passed = 0
        for raw in events:
            if self.done:
                break
            data = data_of(raw)
            event = _read(data) if data is not None else _Event()
            if event.type in ANNOUNCED:
                self._waiting.append(self._renamed(raw, data, event))
                continue
            if data is None and not self._has_begun:  # a comment says nothing
                continue
            self._has_begun = True
            shown += (*self._waiting, self._looked_at(raw, data, event))
            passed += len(self._waiting) + (data is not None)
            self._waiting = []
        self.events += passed
        return b"".join([event + b"\n\n" for event in shown])

    def _looked_at(self, raw: bytes, data: bytes | None, event: _Event) -> bytes:
        if event.type == SAYS:
            if self._room > 0 and data is not None:
                self._room -= len(data)
                self.kept.append(data)
        elif event.type in LAST and event.response != _NONE:
            self.done = True
            said = _response.decode(event.response)
            if said.usage is not None:
                self.usage = Usage(said.usage.input_tokens, said.usage.output_tokens)
            if event.type == "response.failed":
                self.error = said.error or EngineError("the engine failed")
            return self._renamed(raw, data, event)
        elif event.error is not None or event.type == "error":
            self.error = event.error or EngineError(event.message or "no reason given")
        return raw

    def _renamed(self, raw: bytes, data: bytes | None, event: _Event) -> bytes:
        if data is None or event.response == _NONE:
            return raw
        shown = members(data).replaced({"response": renamed(bytes(event.response), "", self._asked)})
        return raw.replace(data, shown, 1)
