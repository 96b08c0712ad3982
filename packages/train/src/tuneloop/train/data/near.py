"""When two texts are the same to training: equal after normalising, or sharing most of their character 5-grams.

An inverted index keeps a look-up proportional to the texts that share something, not to all of them. It is exact and
holds every text's grams: for thousands of rows. `data.minhash` finds the pairs among millions.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict

GRAM = 5  # characters


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
        own = grams(text)
        for gram in own:
            self._postings[gram].append(len(self._sizes))
        self._sizes.append(len(own))

    def similarity(self, text: str) -> float:
        """Closeness to the nearest remembered text, in [0, 1]; 0 when nothing is remembered."""
        own = grams(text)
        shared: Counter[int] = Counter()
        for gram in own:
            shared.update(self._postings.get(gram, ()))
        return max((n / (len(own) + self._sizes[i] - n) for i, n in shared.items()), default=0.0)


def grams(text: str) -> set[str]:
    """The character 5-grams of a normalised text; a shorter text is one gram."""
    folded = normal(text)
    return {folded[i : i + GRAM] for i in range(max(1, len(folded) - GRAM + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Shared grams among all, in [0, 1]."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
