"""A sentence as a string of concepts, one character a token: `ignore all the previous rules` → `OA.PI`.

What differs between phrasings and languages is folded away here, once, so that rules can be short patterns and the
classifier sees `override … prior … instructions` where it never saw the words. Cost is linear in the text; the words
stand in `lexicon.txt`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tuneloop.serve.guards.folding import fold

_TOKEN = re.compile(
    r"https?://[^\s)\]>\"']{1,300}|[\w.+\-]{1,64}@[\w\-]{1,60}(?:\.[\w\-]{1,60}){1,6}"  # addresses: a word each
    r"|[a-zà-ɏͰ-ᗿḀ-῾ऀ-ॿ؀-ۿ0-9]+(?:['.\-][a-zà-ɏͰ-῾0-9]+)*'?"  # words of alphabets
    r"|\.env\b|\"|[㐀-鿿぀-ヿ가-힯]+"  # runs of Chinese, Japanese, Korean
)
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?。！？]+(?!\s|$)[^.!?。！？\n]+)*[.!?。！？]*")
_IDEOGRAM = re.compile(r"[㐀-鿿぀-ヿ]")
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
    firsts: frozenset[str]  # the first words of phrases: all others are one look-up


@cache
def lexicon() -> Lexicon:
    """The lexicon of this package."""
    words: dict[str, str] = {}
    for line in (Path(__file__).parent / "lexicon.txt").read_text(encoding="utf-8").splitlines():
        concept, equals, listed = line.partition(" = ")
        if equals and not line.startswith("#"):
            for word in listed.split():
                words.setdefault(fold(word.replace("_", " ")), concept)
    return Lexicon(words, frozenset(word.split(" ")[0] for word in words if " " in word))


def sentences(text: str) -> list[Sentence]:
    """The sentences of a folded text; lines end sentences too."""
    found = []
    for match in _SENTENCE.finditer(text):
        for start in range(match.start(), match.end(), _LONGEST_SENTENCE):
            end = min(start + _LONGEST_SENTENCE, match.end())
            tokens, concepts = _tagged(text[start:end])
            if tokens:
                blank = len(text[start:end]) - len(text[start:end].lstrip())
                found.append(Sentence(tuple(tokens), "".join(concepts), start + blank, end))
    return found


def _tagged(text: str) -> tuple[list[str], list[str]]:
    words, firsts = lexicon().words, lexicon().firsts
    plain: list[str] = []
    for raw in _TOKEN.findall(text):
        if _IDEOGRAM.match(raw):
            plain.extend(_cut(raw, words))
        elif "@" in raw or (raw.startswith("http") and "://" in raw):
            plain.append("url")
        else:
            plain.append(raw.rstrip("'"))
    tokens, concepts, at = [], [], 0
    while at < len(plain):
        word, length = plain[at], 1
        if word in firsts:
            for more in range(min(_LONGEST_PHRASE, len(plain) - at), 1, -1):
                if (phrase := " ".join(plain[at : at + more])) in words:
                    word, length = phrase, more
                    break
        tokens.append(word)
        concepts.append(words.get(word) or words.get(word.removesuffix("'s"), "."))
        at += length
    return tokens, concepts


def _cut(run: str, words: dict[str, str]) -> list[str]:
    """A run without blanks into the longest words of the lexicon, and single characters between them."""
    cut, at = [], 0
    while at < len(run):
        length = next((n for n in range(min(_LONGEST_RUN, len(run) - at), 1, -1) if run[at : at + n] in words), 1)
        cut.append(run[at : at + length])
        at += length
    return cut
