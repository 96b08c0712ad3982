"""When two texts are the same to training: equal after normalising, or sharing most of their character 5-grams.

An inverted index keeps a look-up proportional to the texts that share something, not to all of them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict

_GRAM = 5


def normal(text: str) -> str:
    """Case, width and spacing folded away."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class NearIndex:
    """Texts seen so far; `similarity` is the Jaccard index of character 5-grams with the closest of them."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._postings: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        """Remember a text."""
        grams = _grams(text)
        for gram in grams:
            self._postings[gram].append(len(self._sizes))
        self._sizes.append(len(grams))

    def similarity(self, text: str) -> float:
        """Closeness to the nearest remembered text, in [0, 1]; 0 when nothing is remembered."""
        grams = _grams(text)
        shared: Counter[int] = Counter()
        for gram in grams:
            shared.update(self._postings.get(gram, ()))
        return max((n / (len(grams) + self._sizes[i] - n) for i, n in shared.items()), default=0.0)


def _grams(text: str) -> set[str]:
    folded = normal(text)
    return {folded[i : i + _GRAM] for i in range(max(1, len(folded) - _GRAM + 1))}
