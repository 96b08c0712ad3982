"""Secrets and personal data out of an answer of the Responses API, streamed or whole.

A text comes up to four times in one stream: in pieces, whole at its end, in its item, in the response. Pieces are
masked as a choice's are (`mask`); what was held back of a text is given out in an event of its own before the one that
ends it. A text that was masked once is shown the same way again. Log probabilities go where their text was masked.
Events are numbered anew, since some are added.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tuneloop.registry.guard_policy import OutputGuards
from tuneloop.serve.gateway.cutter import Cutter, Piece
from tuneloop.serve.gateway.mask import Channel, Look
from tuneloop.serve.gateway.responses.events import data_of, event_of
from tuneloop.serve.gateway.responses.relay import LAST, SAYS

_NO_TEXT = frozenset(
    {"type", "id", "item_id", "call_id", "role", "status", "name", "namespace", "phase", "object", "logprobs"}
)
_SPELT = ("input_messages", "output_messages")  # token ids, which spell the text
_WHERE = ("item_id", "output_index", "content_index", "summary_index")


@dataclass
class _Text:
    """One text of a stream."""

    channel: Channel
    head: dict[str, Any]  # of its events
    raw: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    logprobs: deque[tuple[int, int, list[Any]]] = field(default_factory=deque)  # from, to, what the engine said

    def released(self, *, last: bool) -> list[Any]:
        """The log probabilities whose text has been given out as it is."""
        found: list[Any] = []
        while self.logprobs and (last or self.logprobs[0][1] <= self.channel.given):
            start, end, said = self.logprobs.popleft()
            if not any(start < stop and begin < end for begin, stop in self.channel.masked):
                found += said
        return found


class ResponseMask:
    """The masks of one answer."""

    def __init__(self, output: OutputGuards, look: Look, left_out: Callable[[str], None], keep_bytes: int) -> None:
        """`look` finds; `left_out` hears of secrets too long to wait for; `keep_bytes` of events are kept."""
        self._output = output
        self._look = look
        self._left_out = left_out
        self._room = keep_bytes
        self._number = 0
        self._texts: dict[tuple[object, ...], _Text] = {}  # those that have not ended
        self._known: dict[str, str] = {}  # text → as it was shown
        self.kept: list[bytes] = []  # masked pieces of text, for the record

    async def push(self, data: bytes) -> bytes:
        """Whole events of a stream, masked.

        Raises:
            ValueError: an event that cannot be read, and so cannot be looked at.
        """
        shown: list[bytes] = []
        for raw in data.split(b"\n\n")[:-1]:
            body = data_of(raw)
            if body is None:
                shown.append(raw)
                continue
            try:
                event = msgspec.json.decode(body, type=dict[str, Any])
            except RecursionError:
                raise ValueError("an event that is nested too deeply") from None
            shown += [self._written(one) for one in await self._masked(event)]
        return b"".join([event + b"\n\n" for event in shown])

    async def whole(self, body: bytes) -> bytes:
        """A whole response, masked.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            response = msgspec.json.decode(body, type=dict[str, Any])
        except RecursionError:
            raise ValueError("nested too deeply") from None
        await self._mask_response(response)
        return msgspec.json.encode(response)

    async def _masked(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """An event as the client may see it, after what it makes known of texts that were held back."""
        kind = str(event.get("type"))
        family, _, stage = kind.rpartition(".")
        where = (family, *(event.get(name) for name in _WHERE))
        if stage == "delta":
            return [await self._piece(where, event)]
        before: list[dict[str, Any]] = []
        for ended in list(self._texts) if kind in LAST else [where]:
            if (text := self._texts.pop(ended, None)) is not None:
                before += await self._ended(text)
        response = event.get("response")
        if isinstance(response, dict):  # what else is in it the client has said itself
            await self._mask_response(response)
        else:
            await self._mask_all(event)
        return [*before, event]

    async def _piece(self, where: tuple[object, ...], event: dict[str, Any]) -> dict[str, Any]:
        delta = event.get("delta")
        if not isinstance(delta, str):
            raise ValueError("a piece that is no text")
        text = self._texts.get(where)
        if text is None:
            head = {name: value for name, value in event.items() if name not in {"delta", "logprobs"}}
            text = self._texts[where] = _Text(self._channel(), head)
        start = text.channel.taken
        pieces = text.channel.push(delta)
        said = event.get("logprobs")
        if isinstance(said, list):
            # A token that is only the beginning of a character says nothing yet: it belongs to what follows.
            text.logprobs.append((start, max(text.channel.taken, start + 1), said))
        text.raw.append(delta)
        event["delta"] = await self._shown(text.channel, pieces)
        text.shown.append(event["delta"])
        if "logprobs" in event:
            event["logprobs"] = text.released(last=False)
        return event

    async def _ended(self, text: _Text) -> list[dict[str, Any]]:
        """An event with what was held back of a text; the text is known from here on."""
        rest = await self._shown(text.channel, text.channel.cutter.end())
        self._known["".join(text.raw)] = "".join([*text.shown, rest])
        logprobs = text.released(last=True)
        if not rest and not logprobs:
            return []
        more = {"logprobs": logprobs} if text.head["type"] == SAYS else {}
        return [{**text.head, "delta": rest, **more}]

    async def _mask_response(self, response: dict[str, Any]) -> None:
        for name in _SPELT:
            response.pop(name, None)
        output = response.get("output")
        if not isinstance(output, list):
            raise ValueError("a response without output")
        await self._mask_all(output)

    async def _mask_all(self, value: Any) -> None:
        """Mask every text in a value, each as a whole."""
        found = list(_texts(value))
        new = [text for text in dict.fromkeys(inside[key] for inside, key in found) if text not in self._known]
        for text in new:
            channel = self._channel()
            self._known[text] = await self._shown(channel, [*channel.push(text), *channel.cutter.end()])
        for inside, key in found:
            shown = self._known[inside[key]]
            if shown != inside[key] and isinstance(inside, dict) and inside.get("logprobs"):
                inside["logprobs"] = []
            inside[key] = shown

    async def _shown(self, channel: Channel, pieces: Sequence[Piece]) -> str:
        """Pieces as the client may see them."""
        looked_at = [piece.text + piece.ahead for piece in pieces if piece.look]
        found = iter(await self._look(looked_at) if looked_at else ())
        shown: list[str] = []
        for piece in pieces:
            if piece.shown:
                self._left_out(piece.left_out)
            shown.append(channel.show(piece, next(found) if piece.look else ()))
        return "".join(shown)

    def _channel(self) -> Channel:
        return Channel(Cutter(self._output.hold_characters, leave_out=self._output.secrets == "redact"))

    def _written(self, event: dict[str, Any]) -> bytes:
        if "sequence_number" in event:
            event["sequence_number"] = self._number
            self._number += 1
        kind = str(event.get("type"))
        written = event_of(kind, event)
        if kind == SAYS and self._room > 0:
            self._room -= len(written)
            self.kept.append(msgspec.json.encode(event))
        return written


def _texts(value: Any) -> Iterator[tuple[Any, str | int]]:
    """Every text in a value: what holds it, and under which key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _NO_TEXT:
                if isinstance(inner, str):
                    yield value, key
                else:
                    yield from _texts(inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            if isinstance(inner, str):
                yield value, place
            else:
                yield from _texts(inner)
