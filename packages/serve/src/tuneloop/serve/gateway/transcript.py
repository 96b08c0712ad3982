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


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


_decoder = msgspec.json.Decoder(_Answer)


def answer_text(parts: Sequence[bytes]) -> str | None:
    """What the first choice says, in events or in one JSON body; None when there is nothing to read as an answer."""
    found = list(_first_choices(part.removeprefix(b"data: ") for part in parts))
    return "".join(found) if found else None


def _first_choices(texts: Iterable[bytes]) -> Iterable[str]:
    for text in texts:
        try:
            answer = _decoder.decode(text)
        except msgspec.MsgspecError:  # a comment that keeps the connection alive
            continue
        yield from (choice.said for choice in answer.choices if choice.index == 0)
