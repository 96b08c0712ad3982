"""A sentence as a string of concepts, one character a token: `ignore all the previous rules` → `OA.PI`.

What differs between phrasings and languages is folded away here, once, so that rules can be short patterns and the
classifier sees `override … prior … instructions` where it never saw the words. Cost is linear in the text; the words
stand in `lexicon.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tuneloop.serve.guards.folding import fold

_URL = r"https?://[!#-&(*-=?-\\^-~]{1,300}"  # addresses, in ASCII alone: text of other scripts ends them
_MAIL = r"[a-z0-9_.+\-]{1,64}@[a-z0-9_\-]{1,60}(?:\.[a-z0-9_\-]{1,60}){1,6}"
_PLAIN = (
    r"[a-zà-ɏͰ-ᗿḀ-῾ऀ-ॿ؀-ۿ0-9]+(?:['.\-][a-zà-ɏͰ-῾0-9]+)*'?"  # words of alphabets
    r"|\.env\b|\"|[㐀-鿿぀-ヿ가-힯]+"  # runs of Chinese, Japanese, Korean
)
_TOKEN = re.compile(f"{_URL}|{_MAIL}|{_PLAIN}")
_TOKEN_BUT_MAIL = re.compile(f"{_URL}|{_PLAIN}")  # of what holds no `@`: else each word is tried as one that has it
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?。！？]+(?!\s|$)[^.!?。！？\n]+)*[.!?。！？]*")
_IDEOGRAM = re.compile(r"[㐀-鿿぀-ヿ]")
_PARTS = re.compile(r"[a-z]+")  # of an address or of words joined by marks
_LEAST_JOINED = 3  # words joined by marks: fewer are a compound, as `well-known`
_ORDINARY = frozenset("_.ABVtqev@")  # concepts that addresses of benign texts are full of
_LONGEST_PHRASE, _LONGEST_RUN = 5, 8
_LONGEST_SENTENCE = 1_500  # characters; longer ones are cut


class Sentence(NamedTuple):
    """One sentence of a folded text: its tokens, the concept of each (`.` for none), and where it stands."""

    tokens: tuple[str, ...]
    concepts: str
    start: int
    end: int


@dataclass(frozen=True)
class Lexicon:
    """Words and phrases by concept."""

    words: dict[str, str]
    begun: frozenset[tuple[str, str]]  # the first two words of each phrase: what holds none is one look-up a word


@cache
def lexicon() -> Lexicon:
    """The lexicon of this package."""
    words: dict[str, str] = {}
    for line in (Path(__file__).parent / "lexicon.txt").read_text(encoding="utf-8").splitlines():
        concept, equals, listed = line.partition(" = ")
        if equals and not line.startswith("#"):
            for word in listed.split():
                words.setdefault(fold(word.replace("_", " ")), concept)
    phrases = [phrase.split(" ") for phrase in words if " " in phrase]
    return Lexicon(words, frozenset((phrase[0], phrase[1]) for phrase in phrases))


Tagged = tuple[tuple[str, ...], str, int]  # tokens, the concept of each, and how many blanks stand before them


def sentences(text: str, known: dict[str, Tagged] | None = None) -> list[Sentence]:
    """The sentences of a folded text; lines end sentences too. `known` keeps those of other readings of the text."""
    known, found = {} if known is None else known, []
    for match in _SENTENCE.finditer(text):
        first, last = match.span()
        for start in range(first, last, _LONGEST_SENTENCE):
            piece = text[start : min(start + _LONGEST_SENTENCE, last)]
            if (tagged := known.get(piece)) is None:
                tagged = known[piece] = _tagged(piece)
            tokens, concepts, blanks = tagged
            if tokens:
                found.append(Sentence(tokens, concepts, start + blanks, start + len(piece)))
    return found


def _tagged(text: str) -> Tagged:
    words, begun = lexicon().words, lexicon().begun
    tokens: list[str] = (_TOKEN if "@" in text else _TOKEN_BUT_MAIL).findall(text)
    whole = "".join(tokens)
    if not (whole.isalnum() and whole.isascii()):
        tokens = [word for raw in tokens for word in _words_in(raw, words)]
    if not begun.isdisjoint(pairwise(tokens)):
        tokens = _phrased(tokens, words, begun)
    told = words.get
    concepts = [told(word) or (told(word.removesuffix("'s"), ".") if "'" in word else ".") for word in tokens]
    return tuple(tokens), "".join(concepts), len(text) - len(text.lstrip())


def _phrased(plain: Sequence[str], words: dict[str, str], begun: frozenset[tuple[str, str]]) -> list[str]:
    """Words, each phrase of the lexicon joined to one token: the longest first."""
    tokens, at, size = list[str](), 0, len(plain)
    for start, pair in enumerate(pairwise(plain)):
        if start >= at and pair in begun:
            for more in range(min(_LONGEST_PHRASE, size - start), 1, -1):
                if (phrase := " ".join(plain[start : start + more])) in words:
                    tokens += [*plain[at:start], phrase]
                    at = start + more
                    break
    return [*tokens, *plain[at:]]


def _words_in(raw: str, words: dict[str, str]) -> Sequence[str]:
    """The words of a token: one, but for addresses, scripts without blanks and words joined by marks."""
    if raw.isalnum() and raw.isascii():
        return (raw,)
    if _IDEOGRAM.match(raw):
        return _cut(raw, words)
    if "@" in raw or (raw.startswith("http") and "://" in raw):
        return ["url", *_joined(raw.partition("://")[2] or raw, words)]
    if "-" in raw or "." in raw:
        parts = _joined(raw, words)
        if len(parts) > _LEAST_JOINED:
            return parts
    return [raw.rstrip("'")]


def _joined(text: str, words: dict[str, str]) -> list[str]:
    """The words of an address where three of them are such as attacks use; of most addresses none."""
    parts = _PARTS.findall(text)
    telling = {words[part] for part in parts if part in words} - _ORDINARY
    return parts if len(telling) > 2 else []


def _cut(run: str, words: dict[str, str]) -> list[str]:
    """A run without blanks into the longest words of the lexicon, and single characters between them."""
    cut, at = [], 0
    while at < len(run):
        length = next((n for n in range(min(_LONGEST_RUN, len(run) - at), 1, -1) if run[at : at + n] in words), 1)
        cut.append(run[at : at + length])
        at += length
    return cut
