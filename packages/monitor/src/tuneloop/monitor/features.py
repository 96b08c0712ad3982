"""Prompts as vectors: hashed character n-grams, weighted by how rare they are in the two samples together.

Chosen by measurement on real text (reference 120, window 40, alpha 0.002; standard-library questions of which 30 %
turned to NumPy): plain 2-4-grams saw 0 of 60 turns, 3-5-grams 2, with log counts and pooled inverse document
frequency 56 of 60; an RBF kernel gained nothing over the linear one. The weights come from the *pooled* sample,
which no relabelling of its rows can change, so the permutation test on top stays exact. Costs about 10 ms for 160
questions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEATURES = 2**15
READ_CHARS = 4_000  # of each text; a pasted file must not take the seconds of a hundred questions
_WORD = re.compile(r"[^\W\d_]\w{2,}")
_CLEARLY_MORE = 3.0  # standard errors of the difference of two shares


def prompt_kernel(texts: Sequence[str]) -> NDArray[np.float64]:
    """Cosine similarity of every pair of texts; shape (N, N), diagonal 1 (0 for an empty text)."""
    from scipy.sparse import diags_array  # noqa: PLC0415 (with scikit-learn 1.5 s; `tuneloop alerts` needs neither)
    from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415

    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), n_features=FEATURES, alternate_sign=False, norm=None
    )
    counts = hashing.transform([text[:READ_CHARS] for text in texts]).tocsr()
    counts.data = np.log1p(counts.data)
    appears_in = np.bincount(counts.indices, minlength=FEATURES)
    rarity = np.log((1 + len(texts)) / (1 + appears_in)) + 1
    weighted = counts @ diags_array(rarity)
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    unit = diags_array(1 / np.where(lengths > 0, lengths, 1)) @ weighted
    kernel: NDArray[np.float64] = (unit @ unit.T).toarray()
    return kernel


def centred(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel of the same texts as seen from their mean."""
    means = kernel.mean(axis=0)
    away: NDArray[np.float64] = kernel - means - means[:, None] + means.mean()
    return away


def witness(kernel: NDArray[np.float64], n_reference: int) -> NDArray[np.float64]:
    """How much closer each window text is to its window than to the reference; shape (window,)."""
    rows = kernel[n_reference:]
    n_window = len(rows)
    to_window = (rows[:, n_reference:].sum(axis=1) - 1) / max(n_window - 1, 1)
    difference: NDArray[np.float64] = to_window - rows[:, :n_reference].mean(axis=1)
    return difference


@dataclass(frozen=True)
class Word:
    """A word with the share of texts that hold it, in the reference and in the window."""

    word: str
    reference: float
    window: float


def new_words(reference: Sequence[str], window: Sequence[str], limit: int = 8) -> list[Word]:
    """The words whose share of texts grew most: the shortest answer to "what are they asking about now?"."""
    before, now = _shares(reference), _shares(window)

    def standard_errors(word: str) -> float:
        p, q = before.get(word, 0.0), now[word]
        pooled = (p * len(reference) + q * len(window)) / (len(reference) + len(window))
        return (q - p) / math.sqrt(pooled * (1 - pooled) * (1 / len(reference) + 1 / len(window)) or math.inf)

    grown = sorted((word for word in now if standard_errors(word) >= _CLEARLY_MORE), key=lambda w: (-now[w], w))
    return [Word(word, round(before.get(word, 0.0), 3), round(now[word], 3)) for word in grown[:limit]]


def _shares(texts: Sequence[str]) -> dict[str, float]:
    counts = Counter(word for text in texts for word in set(_WORD.findall(text[:READ_CHARS].lower())))
    return {word: n / len(texts) for word, n in counts.items()}
