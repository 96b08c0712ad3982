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
from pathlib import Path

from tuneloop.serve.guards.folding import fold

_TOKEN = re.compile(
    r"https?://[!#-&(*-=?-\\^-~]{1,300}"  # addresses, in ASCII alone: text of other scripts ends them
    r"|[a-z0-9_.+\-]{1,64}@[a-z0-9_\-]{1,60}(?:\.[a-z0-9_\-]{1,60}){1,6}"
    r"|[a-zà-ɏͰ-ᗿḀ-῾ऀ-ॿ؀-ۿ0-9]+(?:['.\-][a-zà-ɏͰ-῾0-9]+)*'?"  # words of alphabets
    r"|\.env\b|\"|[㐀-鿿぀-ヿ가-힯]+"  # runs of Chinese, Japanese, Korean
)
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?。！？]+(?!\s|$)[^.!?。！？\n]+)*[.!?。！？]*")
_IDEOGRAM = re.compile(r"[㐀-鿿぀-ヿ]")
_PARTS = re.compile(r"[a-z]+")  # of an address or of words joined by marks
_LEAST_JOINED = 3  # words joined by marks: fewer are a compound, as `well-known`
_ORDINARY = frozenset("_.ABVtqev@")  # concepts that addresses of benign texts are full of
_LONGEST_PHRASE, _LONGEST_RUN = 5, 8
_LONGEST_SENTENCE = 1_500  # characters; longer ones are cut


@dataclass(frozen=True)
class Sentence:
    """One sentence of a folded text: its tokens, the concept of each (`.` for none), and where it stands."""

    tokens: tuple[str, ...]
    concepts: str
    start: int
    end: int


@dataclass(frozen=True)
class Lexicon:
    """Words and phrases by concept."""

    words: dict[str, str]
    firsts: dict[str, frozenset[str]]  # of phrases, the first word and those that may follow: all else is one look-up


@cache
def lexicon() -> Lexicon:
    """The lexicon of this package."""
    words: dict[str, str] = {}
    for line in (Path(__file__).parent / "lexicon.txt").read_text(encoding="utf-8").splitlines():
        concept, equals, listed = line.partition(" = ")
        if equals and not line.startswith("#"):
            for word in listed.split():
                words.setdefault(fold(word.replace("_", " ")), concept)
    firsts: dict[str, set[str]] = {}
    for phrase in words:
        if " " in phrase:
            first, second = phrase.split(" ")[:2]
            firsts.setdefault(first, set()).add(second)
    return Lexicon(words, {first: frozenset(seconds) for first, seconds in firsts.items()})


Tagged = tuple[tuple[str, ...], str]  # tokens, and the concept of each


def sentences(text: str, known: dict[str, Tagged] | None = None) -> list[Sentence]:
    """The sentences of a folded text; lines end sentences too. `known` keeps those of other readings of the text."""
    known, found = {} if known is None else known, []
    for match in _SENTENCE.finditer(text):
        for start in range(match.start(), match.end(), _LONGEST_SENTENCE):
            end = min(start + _LONGEST_SENTENCE, match.end())
            piece = text[start:end]
            if (tagged := known.get(piece)) is None:
                tagged = known[piece] = _tagged(piece)
            if tagged[0]:
                found.append(Sentence(*tagged, start + len(piece) - len(piece.lstrip()), end))
    return found


def _tagged(text: str) -> Tagged:
    words, firsts = lexicon().words, lexicon().firsts
    plain: list[str] = []
    for raw in _TOKEN.findall(text):
        if raw.isalnum() and raw.isascii():
            plain.append(raw)
        else:
            plain.extend(_words_in(raw, words))
    tokens: list[str] = []
    concepts: list[str] = []
    at, size = 0, len(plain)
    while at < size:
        word, length = plain[at], 1
        if word in firsts and at + 1 < size and plain[at + 1] in firsts[word]:
            for more in range(min(_LONGEST_PHRASE, size - at), 1, -1):
                if (phrase := " ".join(plain[at : at + more])) in words:
                    word, length = phrase, more
                    break
        tokens.append(word)
        concepts.append(words.get(word) or (words.get(word.removesuffix("'s"), ".") if "'" in word else "."))
        at += length
    return tuple(tokens), "".join(concepts)


def _words_in(raw: str, words: dict[str, str]) -> Sequence[str]:
    """The words of a token: one, but for addresses, scripts without blanks and words joined by marks."""
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
