"""One pass over rows, in batches: what every check needs of each, as columns of numbers and never as text.

About 220 bytes a row stay in memory, most of them the signature that finds near copies.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tuneloop.train.data.minhash import Signatures, sign
from tuneloop.train.data.near import normal
from tuneloop.train.data.quality import detectors
from tuneloop.train.data.rows import Row
from tuneloop.train.recipe.data import QualitySection

PARTS = ("length", "language", "toxicity", "cleanliness", "variety")
_BATCH = 2048
_HARMLESS = 0.5  # probability of offensive language up to which a row loses nothing


@dataclass(frozen=True)
class Columns:
    """Facts of N rows; `scores` are the product of their parts."""

    row_keys: NDArray[np.uint64]  # hash of question and answer, normalised; 64 bits: a million rows collide with 3e-8
    prompt_keys: NDArray[np.uint64]
    answer_keys: NDArray[np.uint64]
    prompt_words: NDArray[np.uint32]
    answer_words: NDArray[np.uint32]
    languages: NDArray[np.uint16]  # places in `language_codes`
    language_codes: tuple[str, ...]
    toxicity: NDArray[np.float32]
    personal: NDArray[np.bool_]
    personal_kinds: dict[str, int]
    parts: NDArray[np.float32]  # (N, len(PARTS)), each in [0, 1]
    signatures: Signatures

    def __len__(self) -> int:
        return len(self.row_keys)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Of each row, in [0, 1]: a good length does not make up for abuse, so parts are multiplied."""
        return np.asarray(self.parts.prod(axis=1, dtype=np.float32))


def text_of(row: Row) -> str:
    """What two rows are compared by."""
    return f"{row.prompt}\n{row.answer}"


def look(rows: Iterable[Row], quality: QualitySection, *, tell: Callable[[int], None] = lambda _: None) -> Columns:
    """Look at every row once.

    Args:
        rows: gone through once, in order.
        quality: which checks are off; what is off is not computed, and its part of the score is 1.
        tell: called with the number of rows seen, after each batch.
    """
    looked = _Looking(quality)
    remaining = iter(rows)
    while batch := list(islice(remaining, _BATCH)):
        looked.add(batch)
        tell(looked.count)
    return looked.columns()


class _Looking:
    """Columns while they grow."""

    def __init__(self, quality: QualitySection) -> None:
        self._quality = quality
        self._row_keys, self._prompt_keys, self._answer_keys = array("Q"), array("Q"), array("Q")
        self._prompt_words, self._answer_words = array("I"), array("I")
        self._languages = array("H")
        self._codes: dict[str, int] = {}
        self._personal = bytearray()
        self._kinds: Counter[str] = Counter()
        self._toxicity = [np.empty(0, np.float32)]
        self._parts = [np.empty((0, len(PARTS)), np.float32)]
        self._signatures = [sign(())]

    @property
    def count(self) -> int:
        return len(self._languages)

    def add(self, batch: Sequence[Row]) -> None:
        quality = self._quality
        folded = [(normal(row.prompt), normal(row.answer)) for row in batch]
        for prompt, answer in folded:
            self._row_keys.append(_key(f"{prompt}\0{answer}"))
            self._prompt_keys.append(_key(prompt))
            self._answer_keys.append(_key(answer))
        self._signatures.append(sign([f"{prompt} {answer}" for prompt, answer in folded]))
        texts = [text_of(row) for row in batch]
        toxic = detectors.toxicity(texts) if quality.toxicity != "off" else np.zeros(len(texts), np.float32)
        self._toxicity.append(toxic)
        parts = np.array(list(self._parts_of(batch, texts, toxic)), np.float32)
        self._parts.append(parts.reshape(-1, len(PARTS)))

    def _parts_of(
        self, batch: Sequence[Row], texts: Sequence[str], toxic: NDArray[np.float32]
    ) -> Iterator[tuple[float, ...]]:
        quality = self._quality
        for row, text, probability in zip(batch, texts, toxic, strict=True):
            words = text.split()
            answered = len(row.answer.split())
            self._prompt_words.append(len(words) - answered)
            self._answer_words.append(answered)
            code = detectors.language(text) if quality.language != "off" else detectors.UNDETERMINED
            self._languages.append(self._codes.setdefault(code, len(self._codes)))
            kinds = detectors.personal_data(text) if quality.pii != "off" else {}
            if kinds:
                self._kinds.update(kinds)
            self._personal.append(bool(kinds))
            yield (
                _length_part(len(words), quality.min_words, quality.max_words),
                float(not foreign(code, quality)),
                min(1.0, (1.0 - float(probability)) / (1.0 - _HARMLESS)),
                detectors.cleanliness(text),
                detectors.variety(words),
            )

    def columns(self) -> Columns:
        return Columns(
            row_keys=np.frombuffer(self._row_keys, np.uint64),
            prompt_keys=np.frombuffer(self._prompt_keys, np.uint64),
            answer_keys=np.frombuffer(self._answer_keys, np.uint64),
            prompt_words=np.frombuffer(self._prompt_words, np.uint32),
            answer_words=np.frombuffer(self._answer_words, np.uint32),
            languages=np.frombuffer(self._languages, np.uint16),
            language_codes=tuple(self._codes),
            toxicity=np.concatenate(self._toxicity),
            personal=np.frombuffer(self._personal, np.bool_),
            personal_kinds=dict(self._kinds),
            parts=np.concatenate(self._parts),
            signatures=np.concatenate(self._signatures),
        )


def foreign(code: str, quality: QualitySection) -> bool:
    """Whether a language is known, and none of those allowed."""
    return bool(quality.languages) and code != detectors.UNDETERMINED and code not in quality.languages


def _length_part(words: int, least: int, most: int) -> float:
    if words < least:
        return words / least
    return 1.0 if words <= most else most / words


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
