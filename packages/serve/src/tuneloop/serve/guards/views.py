"""Other readings of a text: what is hidden in it or encoded, decoded a bounded number of times.

`readings` yields the folded text first, then what every decoder finds in it, then what they find in that, the shortest
first: a whole text that one percent sign changes keeps nobody from opening what is wrapped twice. Work is bounded: one
reading a decoder, `_DEEPEST` layers, and below the first at most `_MOST` readings of eight times the text's characters
in all. A text that has more of them is said to be hidden.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tuneloop.serve.guards import decoders, glance
from tuneloop.serve.guards.folding import fold, invisible_inside

_MOST, _DEEPEST = 16, 3


@dataclass(frozen=True)
class Reading:
    """One way to read the text; `name` is the chain of decoders that led to it, `hidden` if no reader would see it."""

    name: str
    text: str  # folded
    hidden: bool = False


def readings(text: str, *, decode: bool) -> Iterator[Reading]:
    """The folded text, then what is hidden in it or encoded."""
    folded = fold(text)
    yield Reading("text", folded)
    waiting, seen = [(0, 0, "", text, folded, 0, False)], {text}
    budget, given = 8 * len(text) + 1_000, 0
    while waiting:
        *_, path, raw, folded, depth, hidden = heapq.heappop(waiting)
        respelt = path.endswith(_LOWERED)
        for name, found in _decoded(raw, folded, decode=decode, respelt=respelt):
            if found in seen or len(found.strip()) < 6:
                continue
            if depth > 0:
                budget, given = budget - len(found), given + 1
                if budget < 0 or given > _MOST:
                    yield Reading(TOO_MANY, "", hidden=True)
                    return
            seen.add(found)
            unseen = hidden or name in _UNSEEN
            chain = f"{path}{name}"
            reading = Reading(chain, fold(found), unseen)
            yield reading
            if depth + 1 < _DEEPEST:
                further = (len(found), len(seen), f"{chain}>", found, reading.text, depth + 1, unseen)
                heapq.heappush(waiting, further)


TOO_MANY = "more encodings than are looked at"
_LOWERED = ("reversed>", "leetspeak>", "split>")  # what these give has lost its case, and holds no base64
_UNSEEN = {"tags", "selectors", "zero-width"}


def _decoded(text: str, folded: str, *, decode: bool, respelt: bool) -> Iterator[tuple[str, str]]:
    if not text.isascii() and invisible_inside(text):
        for name, decoder in decoders.HIDDEN:
            if found := decoder(text):
                yield name, found
        yield "spaced", fold(text, " ")  # invisible characters in the place of blanks
    if decode:
        yield from _worthwhile(text, decoders.CASELESS if respelt else decoders.ENCODED)
        yield from _worthwhile(folded, decoders.RESPELT)


def _worthwhile(text: str, among: Iterable[decoders.Decoder]) -> Iterator[tuple[str, str]]:
    seen = glance.as_ascii(text)
    for name, may, decoder in among:
        if may(seen) and (found := decoder(text)):
            yield name, found
