"""One pass over rows, in batches: what every check needs of each, as columns of numbers and never as text.

Of a preference the row is its question and chosen answer; the rejected one counts where two rows are compared, where
personal data is looked for, and in lengths. Under 200 bytes a row stay in memory, most of them the signatures.
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

    prompt_keys: NDArray[np.uint64]  # hash of the text, normalised; 64 bits: a million rows collide with 3e-8
    answer_keys: NDArray[np.uint64]  # a preference's answer is the chosen one
    rejected_keys: NDArray[np.uint64]  # 0 where nothing is rejected
    prompt_words: NDArray[np.uint32]
    answer_words: NDArray[np.uint32]
    rejected_words: NDArray[np.uint32]  # 0 where nothing is rejected
    answered: NDArray[np.bool_]  # false: a bare question
    preferred: NDArray[np.bool_]  # true: a preference
    identical: NDArray[np.bool_]  # a preference between two equal answers
    languages: NDArray[np.uint16]  # places in `language_codes`
    language_codes: tuple[str, ...]
    toxicity: NDArray[np.float32]
    personal: NDArray[np.bool_]
    personal_kinds: dict[str, int]
    parts: NDArray[np.float32]  # (N, len(PARTS)), each in [0, 1]
    signatures: Signatures

    def __len__(self) -> int:
        return len(self.prompt_keys)

    @property
    def row_keys(self) -> NDArray[np.uint64]:
        """Of all that each row says."""
        whole = _mixed(self.prompt_keys, self.answer_keys, self.rejected_keys)
        return np.where(self.preferred, whole, self.learned_keys)

    @property
    def learned_keys(self) -> NDArray[np.uint64]:
        """Of question and answer alone."""
        return _mixed(self.prompt_keys, self.answer_keys)

    @property
    def turned_keys(self) -> NDArray[np.uint64]:
        """What `row_keys` of a preference would be were the other answer preferred."""
        return _mixed(self.prompt_keys, self.rejected_keys, self.answer_keys)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Of each row, in [0, 1]: a good length does not make up for abuse, so parts are multiplied."""
        return np.asarray(self.parts.prod(axis=1, dtype=np.float32))


def text_of(row: Row) -> str:
    """What two rows are compared by, and where personal data is looked for: all they say."""
    return _learned_text(row) if row.rejected is None else f"{_learned_text(row)}\n{row.rejected}"


def _learned_text(row: Row) -> str:
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
        self._prompt_keys, self._answer_keys, self._rejected_keys = array("Q"), array("Q"), array("Q")
        self._prompt_words, self._answer_words, self._rejected_words = array("I"), array("I"), array("I")
        self._answered, self._preferred, self._identical = bytearray(), bytearray(), bytearray()
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
        whole: list[str] = []
        for row in batch:
            prompt, answer, rejected = normal(row.prompt), normal(row.answer), normal(row.rejected or "")
            self._prompt_keys.append(_key(prompt))
            self._answer_keys.append(_key(answer))
            self._rejected_keys.append(0 if row.rejected is None else _key(rejected))
            whole.append(f"{prompt} {answer}" if row.rejected is None else f"{prompt} {answer} {rejected}")
        self._signatures.append(sign(whole))
        texts = [_learned_text(row) for row in batch]
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
            code = detectors.UNDETERMINED
            if quality.language != "off":
                code = detectors.language(row.prompt, row.answer)
            self._languages.append(self._codes.setdefault(code, len(self._codes)))
            self._rejected_words.append(len((row.rejected or "").split()))
            self._answered.append(row.answered)
            self._preferred.append(row.rejected is not None)
            self._identical.append(row.rejected is not None and row.rejected.strip() == row.answer.strip())
            kinds = detectors.personal_data(text_of(row)) if quality.pii != "off" else {}
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
            prompt_keys=np.frombuffer(self._prompt_keys, np.uint64),
            answer_keys=np.frombuffer(self._answer_keys, np.uint64),
            rejected_keys=np.frombuffer(self._rejected_keys, np.uint64),
            prompt_words=np.frombuffer(self._prompt_words, np.uint32),
            answer_words=np.frombuffer(self._answer_words, np.uint32),
            rejected_words=np.frombuffer(self._rejected_words, np.uint32),
            answered=np.frombuffer(self._answered, np.bool_),
            preferred=np.frombuffer(self._preferred, np.bool_),
            identical=np.frombuffer(self._identical, np.bool_),
            languages=np.frombuffer(self._languages, np.uint16),
            language_codes=tuple(self._codes),
            toxicity=np.concatenate(self._toxicity),
            personal=np.frombuffer(self._personal, np.bool_),
            personal_kinds=dict(self._kinds),
            parts=np.concatenate(self._parts),
            signatures=np.concatenate(self._signatures),
        )


def foreign(code: str, quality: QualitySection) -> bool:
    """Whether a language is known, of question or answer, and none of those allowed."""
    return bool(quality.languages) and not {*code.split(detectors.BOTH)} <= {*quality.languages, detectors.UNDETERMINED}


def _length_part(words: int, least: int, most: int) -> float:
    if words < least:
        return words / least
    return 1.0 if words <= most else most / words


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _mixed(*parts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes as one, in their order: each is added, and the sum stirred by splitmix64 (Steele et al. 2014)."""
    made = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        made = made + part + np.uint64(0x9E3779B97F4A7C15)
        made = (made ^ (made >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        made = (made ^ (made >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        made = made ^ (made >> np.uint64(31))
    return made
