"""Secrets and personal data out of an answer, streamed or whole: every text that a choice says is masked by itself,
and the same comes out wherever the network cuts the stream.

Text waits only while it may still turn out to be part of a find (`cutter`); what a choice has left is given out with
its `finish_reason`. Log probabilities wait for the text they belong to, and are dropped where it was masked; token ids,
which spell the text, are dropped always. Costs nothing where a model's policy does not look at answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from tuneloop.registry.guard_policy import OutputGuards
from tuneloop.serve.gateway.cutter import Cutter, Piece
from tuneloop.serve.gateway.sse import DONE

Path = tuple[str | int, ...]  # a number stands for the item of a list that has it as its `index`
_NO_TEXT = frozenset({"role", "type", "id", "name"})
_SPELT = ("token_ids", "prompt_token_ids", "prompt_logprobs")


@dataclass(frozen=True, slots=True)
class Find:
    """Where something was found in a piece."""

    start: int
    end: int
    shown: str | None = None  # what stands in its place; None: it stays


Look = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[Find]]]]  # texts → the finds in each, from left to right


class Channel:
    """One text of one choice."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.taken = 0  # characters that came in
        self.given = 0  # characters that were given out, masked or not
        self.masked: list[tuple[int, int]] = []  # of those that came in
        self._covered = 0  # up to here everything is masked

    def push(self, text: str) -> list[Piece]:
        """Take more of it."""
        self.taken += len(text)
        return self.cutter.push(text)

    def show(self, piece: Piece, finds: Sequence[Find]) -> str:
        """The next piece as the client may see it."""
        begin, end = self.given, self.given + len(piece.text)
        self.given = end
        if piece.left_out:
            self._hide(begin, end)
            return piece.shown
        at, parts = max(begin, self._covered), []
        for find in finds:
            start, stop = begin + find.start, begin + find.end
            if find.shown is None or start >= end:
                continue
            if start >= at:
                parts += [piece.text[at - begin : start - begin], find.shown]
            if stop > at:
                self._hide(start, stop)
                at = stop
        return "".join([*parts, piece.text[at - begin :]])

    def _hide(self, start: int, end: int) -> None:
        self.masked.append((start, end))
        self._covered = max(self._covered, end)


@dataclass
class _Choice:
    """What is known of one choice of a stream."""

    channels: dict[Path, Channel] = field(default_factory=dict)
    logprobs: deque[tuple[int, int, dict[str, Any]]] = field(default_factory=deque)  # from, to, what the engine said
    finished: bool = False

    @property
    def waits(self) -> bool:
        """Whether text is held back."""
        return any(channel.cutter.waits for channel in self.channels.values())


@dataclass
class _Slot:
    """Where a text is to be put once it was looked at."""

    inside: Any
    key: str
    channel: Channel
    pieces: list[Piece]


class Mask:
    """The masks of one answer."""

    def __init__(self, output: OutputGuards, look: Look, left_out: Callable[[str], None], keep_bytes: int) -> None:
        """`look` finds; `left_out` hears of secrets too long to wait for; `keep_bytes` of events are kept."""
        self._output = output
        self._look = look
        self._left_out = left_out
        self._room = keep_bytes
        self._choices: dict[int, _Choice] = {}
        self._head: dict[str, Any] = {}  # of the newest event
        self.kept: list[bytes] = []  # masked events that carry text, for the record

    async def push(self, data: bytes) -> bytes:
        """Whole events of a stream, masked.

        Raises:
            ValueError: an event that cannot be read, and so cannot be looked at.
        """
        events: list[bytes | dict[str, Any]] = []
        slots: list[_Slot] = []
        for raw in data.split(b"\n\n")[:-1]:
            if raw.startswith(DONE) or b'"choices":[]' in raw:  # the choices have ended, whatever they said of it
                rest = [index for index, choice in self._choices.items() if choice.waits]
                if rest:
                    event = {**self._head, "choices": [{"index": index, "finish_reason": None} for index in rest]}
                    slots += self._taken(event, finish=True)
                    events.append(event)
            if raw.startswith(DONE):
                events.append(raw)
            elif raw.startswith(b"data: "):
                event = msgspec.json.decode(raw[6:], type=dict[str, Any])
                slots += self._taken(event)
                events.append(event)
            elif raw.startswith(b":") and b"\n" not in raw:  # a comment that keeps the connection alive
                events.append(raw)
            else:
                raise ValueError("an event that is no data")
        await self._fill(slots)
        return b"".join([self._given(event) + b"\n\n" for event in events])

    async def whole(self, body: bytes) -> bytes:
        """A whole answer, masked.

        Raises:
            ValueError: it cannot be read.
        """
        answer = msgspec.json.decode(body, type=dict[str, Any])
        await self._fill(self._taken(answer, finish=True))
        for choice in _choices_of(answer):
            if any(channel.masked for channel in self._of(choice).channels.values()):
                choice["logprobs"] = None
        return msgspec.json.encode(answer)

    def _taken(self, event: dict[str, Any], *, finish: bool = False) -> list[_Slot]:
        """Take the texts out of an event; where they came from is filled again by `_fill`."""
        slots: list[_Slot] = []
        for name in _SPELT:
            event.pop(name, None)
        choices = _choices_of(event)
        if choices:
            self._head = {name: value for name, value in event.items() if name not in {"choices", "usage"}}
        for choice in choices:
            known = self._of(choice)
            for name in _SPELT:
                choice.pop(name, None)
            here: dict[Path, _Slot] = {}
            for inside, key, path in _texts(choice):
                channel = known.channels.get(path)
                if channel is None:
                    leave_out = self._output.secrets == "redact"
                    channel = known.channels[path] = Channel(Cutter(self._output.hold_characters, leave_out=leave_out))
                before = channel.taken
                here[path] = _Slot(inside, key, channel, channel.push(inside[key]))
                if path in {("delta", "content"), ("text",)} and isinstance(choice.get("logprobs"), dict):
                    # A token that is only the beginning of a character says nothing yet: it belongs to what follows.
                    known.logprobs.append((before, max(channel.taken, before + 1), choice["logprobs"]))
            if finish or choice.get("finish_reason") is not None:
                known.finished = True
                for path, channel in known.channels.items():
                    if rest := channel.cutter.end():
                        slot = here.get(path)
                        if slot is None:
                            slot = here[path] = _Slot(*_place(choice, path), channel, [])
                        slot.pieces += rest
            slots += here.values()
        return slots

    async def _fill(self, slots: list[_Slot]) -> None:
        """Put texts back, masked."""
        looked_at = [piece for slot in slots for piece in slot.pieces if piece.look]
        found = iter(await self._look([piece.text + piece.ahead for piece in looked_at]) if looked_at else ())
        for slot in slots:
            shown = []
            for piece in slot.pieces:
                if piece.shown:
                    self._left_out(piece.left_out)
                shown.append(slot.channel.show(piece, next(found) if piece.look else ()))
            slot.inside[slot.key] = "".join(shown)

    def _given(self, event: bytes | dict[str, Any]) -> bytes:
        """An event's bytes, with the log probabilities whose text has been given out."""
        if isinstance(event, bytes):
            return event
        choices = _choices_of(event)
        for choice in choices:
            known = self._of(choice)
            if known.logprobs or choice.get("logprobs") is not None:
                choice["logprobs"] = self._logprobs(known)
        encoded = b"data: " + msgspec.json.encode(event)
        if choices and self._room > 0:
            self._room -= len(encoded)
            self.kept.append(encoded)
        return encoded

    @staticmethod
    def _logprobs(known: _Choice) -> dict[str, Any] | None:
        channel = known.channels.get(("delta", "content")) or known.channels.get(("text",))
        joined: dict[str, Any] | None = None
        while channel is not None and known.logprobs:
            start, end, said = known.logprobs[0]
            if end > channel.given and not known.finished:
                break
            known.logprobs.popleft()
            if any(start < stop and begin < end for begin, stop in channel.masked):
                continue
            lists = {name: value for name, value in said.items() if isinstance(value, list) and name != "refusal"}
            joined = {name: [*(joined or {}).get(name, ()), *value] for name, value in lists.items()}
        return joined

    def _of(self, choice: dict[str, Any]) -> _Choice:
        index = choice.get("index", 0)
        if not isinstance(index, int):
            raise ValueError("a choice whose index is no number")
        return self._choices.setdefault(index, _Choice())


def _choices_of(event: dict[str, Any]) -> list[dict[str, Any]]:
    choices = event.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError("choices that are none")
    return choices


def _texts(choice: dict[str, Any]) -> list[tuple[dict[str, Any], str, Path]]:
    """Every text of a choice: what holds it, under which key, and the path that stays the same from event to event."""
    found: list[tuple[dict[str, Any], str, Path]] = (
        [(choice, "text", ("text",))] if isinstance(choice.get("text"), str) else []
    )
    for name in ("delta", "message"):
        found += _inside(choice.get(name), (name,))
    return found


def _inside(value: Any, path: Path) -> Iterator[tuple[dict[str, Any], str, Path]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                if key not in _NO_TEXT:
                    yield value, key, (*path, key)
            else:
                yield from _inside(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            number = inner.get("index", place) if isinstance(inner, dict) else place
            yield from _inside(inner, (*path, number))


def _place(choice: dict[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    """Where a text of that path stands in a choice; made where it is not there."""
    here: Any = choice
    for step, after in pairwise(path):
        if isinstance(step, int):
            item = next((one for one in here if isinstance(one, dict) and one.get("index") == step), None)
            if item is None:
                item = {"index": step}
                here.append(item)
            here = item
        else:
            if not isinstance(here.get(step), list if isinstance(after, int) else dict):
                here[step] = [] if isinstance(after, int) else {}
            here = here[step]
    key = path[-1]
    assert isinstance(key, str)
    return here, key
