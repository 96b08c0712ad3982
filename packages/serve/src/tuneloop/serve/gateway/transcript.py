"""The text of an answer, from the bytes an engine sent; off the request path, for the record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None  # completions
    delta: _Said | None = None  # streamed chat
    message: _Said | None = None  # whole chat

    @property
    def said(self) -> str:
        said = self.delta or self.message
        return (said.content if said is not None else self.text) or ""


class _Content(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _Item(msgspec.Struct):
    type: str = ""
    content: list[_Content] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    output: list[_Item] = []  # a whole response
    delta: str | None = None  # a piece of a streamed one

    @property
    def said(self) -> Iterable[str]:
        yield from (choice.said for choice in self.choices if choice.index == 0)
        for item in self.output:
            if item.type == "message":
                yield from (part.text or "" for part in item.content or ())
        if self.delta is not None:
            yield self.delta


_decoder = msgspec.json.Decoder(_Answer)


def answer_text(parts: Sequence[bytes]) -> str | None:
    """What the first choice, or a response, says, in events or in one JSON body; None when nothing is there to read."""
    found = list(_said(part.removeprefix(b"data: ") for part in parts))
    return "".join(found) if found else None


def _said(texts: Iterable[bytes]) -> Iterable[str]:
    for text in texts:
        try:
            answer = _decoder.decode(text)
        except msgspec.MsgspecError:  # a comment that keeps the connection alive
            continue
        yield from answer.said
