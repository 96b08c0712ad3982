"""Other readings of a text: what is hidden in it or encoded, decoded a bounded number of times.

`readings` yields the folded text first, then what every decoder finds in it, then what they find in that, the shortest
first: a whole text that one percent sign changes keeps nobody from opening what is wrapped twice. Work is bounded: one
reading a decoder, `_DEEPEST` layers, and below the first at most `_MOST` readings of eight times the text's characters
in all. A text that has more of them is said to be hidden.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from tuneloop.serve.guards import decoders, glance
from tuneloop.serve.guards.folding import fold, invisible_inside

_MOST, _DEEPEST = 16, 3
Decoders = tuple[decoders.Decoder, ...]


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
    waiting, seen, respelt = [(0, 0, "", text, folded, 0, False)], {text}, set[str]()
    budget, given = 8 * len(text) + 1_000, 0
    while waiting:
        *_, path, raw, folded, depth, hidden = heapq.heappop(waiting)
        among = decoders.CASELESS if path.endswith(_LOWERED) else decoders.ENCODED
        anew = decoders.RESPELT if folded not in respelt else ()  # read twice it gives the same, which was seen
        respelt.add(folded)
        for name, found in _decoded(raw, folded, (among, anew) if decode else ((), ())):
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


def _decoded(text: str, folded: str, among: tuple[Decoders, Decoders]) -> Iterator[tuple[str, str]]:
    """What is hidden in a text, and what decoders find: of the first among these in it, of the others folded."""
    if not text.isascii() and invisible_inside(text):
        for name, decoder in decoders.HIDDEN:
            if found := decoder(text):
                yield name, found
        yield "spaced", fold(text, " ")  # invisible characters in the place of blanks
    seen = glance.as_ascii(text)
    yield from _worthwhile(text, seen, among[0])
    yield from _worthwhile(folded, seen if folded == text else glance.as_ascii(folded), among[1])


def _worthwhile(text: str, seen: bytes, among: Decoders) -> Iterator[tuple[str, str]]:
    for name, may, decoder in among:
        if may(seen) and (found := decoder(text)):
            yield name, found
