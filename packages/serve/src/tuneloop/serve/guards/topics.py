"""Which topics a text speaks of, by the words and phrases that a policy gives each.

One pass over the words, whatever the number of phrases: a phrase is looked up by its first word. Languages that write
no blanks between words are looked through for the phrase as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tuneloop.serve.guards.folding import fold

OFF_TOPIC = "off topic"  # the kind of a text that speaks of none of the allowed topics
_WORD = re.compile(r"[^\W_]+")
_PATTERN = re.compile(r"[^\W_]+\*?")
# Han, kana, Thai, Lao, Khmer, Myanmar
_NO_BLANKS = re.compile("[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f]")


class _Phrase(NamedTuple):
    rest: tuple[str, ...]  # patterns of the words after the first
    topic: str


class Topics:
    """Phrases by topic, made ready for matching."""

    def __init__(self, phrases: Mapping[str, Sequence[str]]) -> None:
        self._words: dict[str, list[_Phrase]] = {}
        self._beginnings: dict[int, dict[str, list[_Phrase]]] = {}  # by length
        self._inside: list[tuple[str, str]] = []
        for topic, said in phrases.items():
            for phrase in said:
                self._add(topic, fold(phrase))

    def _add(self, topic: str, phrase: str) -> None:
        if _NO_BLANKS.search(phrase):
            self._inside.append((phrase.replace("*", "").strip(), topic))
            return
        first, *rest = _PATTERN.findall(phrase)  # a policy holds no phrase without a word
        known = self._words
        if first.endswith("*"):
            first = first[:-1]
            known = self._beginnings.setdefault(len(first), {})
        known.setdefault(first, []).append(_Phrase(tuple(rest), topic))

    def spoken_of(self, folded: str) -> list[str]:
        """The topics of a folded text, in the order they come up in it."""
        words = _WORD.findall(folded)
        found: dict[str, None] = {}
        for place, word in enumerate(words):
            for phrase in self._beginning_with(word):
                if _goes_on(words, place + 1, phrase.rest):
                    found[phrase.topic] = None
        found |= dict.fromkeys(topic for phrase, topic in self._inside if phrase in folded)
        return [*found]

    def _beginning_with(self, word: str) -> Iterable[_Phrase]:
        yield from self._words.get(word, ())
        for length, known in self._beginnings.items():
            yield from known.get(word[:length], ())


def words_of(text: str) -> int:
    """How many words a text has; of languages without blanks, a word for every two characters."""
    return len(_WORD.findall(text)) + len(_NO_BLANKS.findall(text)) // 2


def _goes_on(words: Sequence[str], place: int, rest: Sequence[str]) -> bool:
    if place + len(rest) > len(words):
        return False
    return all(
        word.startswith(pattern[:-1]) if pattern.endswith("*") else word == pattern
        for word, pattern in zip(words[place : place + len(rest)], rest, strict=True)
    )
