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
from tuneloop.serve.gateway.mask import Channel, Find, Look
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


@dataclass
class _Slot:
    """Pieces of a text, in order, and what was found in each of them."""

    channel: Channel
    pieces: list[Piece]
    found: list[Sequence[Find]] = field(default_factory=list)


_Step = Callable[[], list[dict[str, Any]]]  # what comes of one event once its texts were looked at; in their order


class ResponseMask:
    """The masks of one answer."""

    def __init__(self, output: OutputGuards, look: Look, left_out: Callable[[str], None], keep_bytes: int) -> None:
        """`look` finds; `left_out` hears of secrets too long to wait for; `keep_bytes` of events are kept."""
        self._output = output
        self._look = look
        self._left_out = left_out
        self._room = keep_bytes
        self.numbered = 0  # events that were given out
        self._texts: dict[tuple[object, ...], _Text] = {}  # those that have not ended
        self._known: dict[str, str] = {}  # text → as it was shown
        self.kept: list[bytes] = []  # masked pieces of text, for the record

    async def push(self, data: bytes) -> bytes:
        """Whole events of a stream, masked; what is in all of them is looked at once.

        Raises:
            ValueError: an event that cannot be read, and so cannot be looked at.
        """
        slots: list[_Slot] = []
        steps: list[bytes | _Step] = []
        for raw in data.split(b"\n\n")[:-1]:
            body = data_of(raw)
            if body is None:
                steps.append(raw)
                continue
            try:
                event = msgspec.json.decode(body, type=dict[str, Any])
                steps.append(self._taken(event, slots))
            except RecursionError:
                raise ValueError("an event that is nested too deeply") from None
        await self._look_at(slots)
        shown: list[bytes] = []
        for step in steps:
            shown += [step] if isinstance(step, bytes) else [self._written(one) for one in step()]
        return b"".join([event + b"\n\n" for event in shown])

    async def whole(self, body: bytes) -> bytes:
        """A whole response, masked.

        Raises:
            ValueError: it cannot be read.
        """
        slots: list[_Slot] = []
        try:
            response = msgspec.json.decode(body, type=dict[str, Any])
            mask = self._taken_response(response, slots)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        await self._look_at(slots)
        mask()
        return msgspec.json.encode(response)

    def _taken(self, event: dict[str, Any], slots: list[_Slot]) -> _Step:
        """Take the texts out of an event; once they were looked at, the step gives it as the client may see it, after
        what it makes known of texts that were held back."""
        kind = str(event.get("type"))
        family, _, stage = kind.rpartition(".")
        where = (family, *(event.get(name) for name in _WHERE))
        if stage == "delta":
            return self._taken_piece(where, event, slots)
        ended = [self._texts.pop(one, None) for one in (list(self._texts) if kind in LAST else [where])]
        before = [self._taken_rest(text, slots) for text in ended if text is not None]
        response = event.get("response")
        # What else is in a response the client has said itself.
        whole = response if isinstance(response, dict) else None
        mask = self._taken_all(event, slots) if whole is None else self._taken_response(whole, slots)

        def step() -> list[dict[str, Any]]:
            made = [one for rest in before for one in rest()]
            mask()
            return [*made, event]

        return step

    def _taken_piece(self, where: tuple[object, ...], event: dict[str, Any], slots: list[_Slot]) -> _Step:
        delta = event.get("delta")
        if not isinstance(delta, str):
            raise ValueError("a piece that is no text")
        text = self._texts.get(where)
        if text is None:
            head = {name: value for name, value in event.items() if name not in {"delta", "logprobs"}}
            text = self._texts[where] = _Text(self._channel(), head)
        start = text.channel.taken
        slot = _slot(text.channel, text.channel.push(delta), slots)
        said = event.get("logprobs")
        if isinstance(said, list):
            # A token that is only the beginning of a character says nothing yet: it belongs to what follows.
            text.logprobs.append((start, max(text.channel.taken, start + 1), said))
        text.raw.append(delta)

        def step() -> list[dict[str, Any]]:
            event["delta"] = self._shown(slot)
            text.shown.append(event["delta"])
            if "logprobs" in event:
                event["logprobs"] = text.released(last=False)
            return [event]

        return step

    def _taken_rest(self, text: _Text, slots: list[_Slot]) -> _Step:
        """An event with what was held back of a text; the text is known from here on."""
        slot = _slot(text.channel, text.channel.cutter.end(), slots)
        raw = "".join(text.raw)
        self._known.setdefault(raw, "")  # until the step

        def step() -> list[dict[str, Any]]:
            rest = self._shown(slot)
            self._known[raw] = "".join([*text.shown, rest])
            logprobs = text.released(last=True)
            if not rest and not logprobs:
                return []
            more = {"logprobs": logprobs} if text.head["type"] == SAYS else {}
            return [{**text.head, "delta": rest, **more}]

        return step

    def _taken_response(self, response: dict[str, Any], slots: list[_Slot]) -> Callable[[], None]:
        for name in _SPELT:
            response.pop(name, None)
        output = response.get("output")
        if not isinstance(output, list):
            raise ValueError("a response without output")
        return self._taken_all(output, slots)

    def _taken_all(self, value: Any, slots: list[_Slot]) -> Callable[[], None]:
        """Every text in a value, each as a whole; what is given masks them."""
        found = list(_texts(value))
        new: list[tuple[str, _Slot]] = []
        for text in dict.fromkeys(inside[key] for inside, key in found):
            if text not in self._known:
                self._known[text] = ""  # until they are masked
                channel = self._channel()
                new.append((text, _slot(channel, [*channel.push(text), *channel.cutter.end()], slots)))

        def mask() -> None:
            for text, slot in new:
                self._known[text] = self._shown(slot)
            for inside, key in found:
                shown = self._known[inside[key]]
                if shown != inside[key] and isinstance(inside, dict) and inside.get("logprobs"):
                    inside["logprobs"] = []
                inside[key] = shown

        return mask

    async def _look_at(self, slots: list[_Slot]) -> None:
        looked_at = [piece.text + piece.ahead for slot in slots for piece in slot.pieces if piece.look]
        found = iter(await self._look(looked_at) if looked_at else ())
        for slot in slots:
            slot.found = [next(found) if piece.look else () for piece in slot.pieces]

    def _shown(self, slot: _Slot) -> str:
        """Pieces that were looked at, as the client may see them."""
        shown: list[str] = []
        for piece, found in zip(slot.pieces, slot.found, strict=True):
            if piece.shown:
                self._left_out(piece.left_out)
            shown.append(slot.channel.show(piece, found))
        return "".join(shown)

    def _channel(self) -> Channel:
        return Channel(Cutter(self._output.hold_characters, leave_out=self._output.secrets == "redact"))

    def _written(self, event: dict[str, Any]) -> bytes:
        if "sequence_number" in event:
            event["sequence_number"] = self.numbered
            self.numbered += 1
        kind = str(event.get("type"))
        written = event_of(kind, event)
        if kind == SAYS and self._room > 0:
            self._room -= len(written)
            self.kept.append(msgspec.json.encode(event))
        return written


def _slot(channel: Channel, pieces: list[Piece], slots: list[_Slot]) -> _Slot:
    slots.append(_Slot(channel, pieces))
    return slots[-1]


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
