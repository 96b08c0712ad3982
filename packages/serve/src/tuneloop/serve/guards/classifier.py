"""A linear model over hashed n-grams of words, characters and concepts, in plain Python.

Trained by `guards/training/fit.py`; the weights are 8-bit integers in `classifier.json`. A feature counts once in a
sentence and each by 1/√n, so a long window needs more evidence; a window's value is the sum of its sentences'. The
score is scaled so that 0.5 lies where the false positives of the calibration texts reach the budget. About 2 µs a word
and window.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from array import array
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path

from tuneloop.registry.errors import Unreadable
from tuneloop.serve.guards.concepts import Sentence
from tuneloop.serve.guards.rules import Hit

BUCKETS = 1 << 16
WINDOW = 3  # sentences
LEAST = 80  # features, those of about four words: fewer weigh no more than if there were so many
_WEAK = frozenset('_.ABVeqv"')  # concepts that every text holds: they make no window worth a look
_FILLING = str.maketrans("", "", '_.teq"')  # and those that come between others
MODEL = Path(__file__).parent / "classifier.json"
_SPREAD = 0x9E3779B1  # Knuth's multiplier
PLAINLY_BENIGN = 2.0  # below the threshold: there a rule alone does not count
_SCALE = 4.0  # how steep the score is around 0.5


@dataclass(frozen=True)
class Window:
    """A stretch of consecutive sentences: the features of each, and of all together."""

    start: int
    end: int
    pieces: tuple[Set[int], ...]


@dataclass(frozen=True)
class Classifier:
    """The weights, and the decision value at which the score is 0.5."""

    weights: array[int]  # BUCKETS × int8
    unit: float  # what one step of a weight is worth
    intercept: float
    threshold: float

    def best(self, found: Sequence[Window]) -> tuple[float, Window | None]:
        """The highest decision value and the window that has it; what several windows share is added up once."""
        sums: dict[int, int] = {}
        worth_of, highest, where = self.weights.__getitem__, -math.inf, None
        for window in found:
            total = size = 0
            for piece in window.pieces:
                if (worth := sums.get(id(piece))) is None:
                    worth = sums[id(piece)] = sum(map(worth_of, piece))
                total += worth
                size += len(piece)
            value = self.intercept + self.unit * total / math.sqrt(max(size, LEAST))
            if value > highest:
                highest, where = value, window
        return highest, where

    def doubts(self, value: float) -> bool:
        """Whether a decision value is so low that a rule alone does not count."""
        return value < self.threshold - PLAINLY_BENIGN

    def score(self, value: float) -> float:
        """0–1: how likely a window of this decision value is an attack; −∞ is 0."""
        return 1 / (1 + math.exp(-_SCALE * max(-50.0, min(50.0, value - self.threshold))))


def load(path: Path = MODEL) -> Classifier:
    """The shipped classifier.

    Raises:
        Unreadable: the file is damaged or of another version.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        weights = array("b", base64.b64decode(stored["weights"], validate=True))
        classifier = Classifier(weights, float(stored["unit"]), float(stored["intercept"]), float(stored["threshold"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{path}: is no classifier of the guards ({error}); install tuneloop-serve anew") from None
    if len(weights) != BUCKETS:
        raise Unreadable(f"{path}: has {len(weights)} weights, not {BUCKETS}; install tuneloop-serve anew")
    return classifier


def windows(parts: Sequence[Sentence], marked: Sequence[Hit], seen: Set[tuple[str, ...]] = frozenset()) -> list[Window]:
    """Each sentence, and each run of three, in which at least two concepts meet; marks count where they stand.

    A run of sentences that were all `seen` in another reading of the text is left out.
    """
    strong = [_strong(part.concepts) for part in parts]
    single: dict[int, Set[int]] = {}  # made for those sentences alone that a window needs
    found = []
    for size in {1, min(WINDOW, len(parts))} - {0}:
        for first in range(len(parts) - size + 1):
            run = range(first, first + size)
            if seen and all(parts[at].tokens in seen for at in run):
                continue
            start, end = parts[first].start, parts[first + size - 1].end
            kinds = 0
            for at in run:
                kinds |= strong[at]
            # An attack says what to do and with what: where only one of both is named, there is nothing to judge.
            if kinds.bit_count() > 1 or (kinds and _any_mark(marked, start, end)):
                for at in run:
                    if at not in single:
                        single[at] = _features(parts[at], marked)
                pieces = [single[at] for at in run]
                if size > 1:
                    pieces.append(_across(kinds))
                found.append(Window(start, end, tuple(pieces)))
    return found


def _any_mark(marked: Sequence[Hit], start: int, end: int) -> bool:
    return any(start - 60 <= hit.start <= end for hit in marked)


def _strong(concepts: str) -> int:
    """The concepts that make a window worth a look, a bit each."""
    bits = 0
    for concept in set(concepts) - _WEAK:
        bits |= 1 << ord(concept)
    return bits


def _features(part: Sentence, marked: Sequence[Hit]) -> Set[int]:
    # Quotation marks part no words: anybody can put them anywhere.
    tokens = [word for word in part.tokens if word != '"'] if '"' in part.concepts else part.tokens
    if not tokens:
        return frozenset()
    known = [_of_word(token) for token in tokens]
    codes = [code for code, _ in known]
    found: set[int] = set().union(*[grams for _, grams in known])
    mask = BUCKETS - 1  # pairs and triples of words, hashed from the words' own hashes: half the time of new texts
    found.update([(a * _SPREAD + b) >> 9 & mask for a, b in pairwise(codes)])
    triples = zip(codes, codes[1:], codes[2:], strict=False)
    found.update([((a * _SPREAD + b) * _SPREAD + c) >> 11 & mask for a, b, c in triples])
    found.update(_hashed([f"^ {tokens[0]}", f"^ {' '.join(tokens[:2])}"]))  # what an order begins with
    found.update(_of_concepts(part.concepts))
    if marked:
        found.update(_marked(part, marked))
    return found


class _Buckets(dict[str, int]):
    """The bucket of each gram of a kind, hashed once: texts repeat few runs of concepts again and again."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def __missing__(self, gram: str) -> int:
        if len(self) >= _HELD:  # somebody writes runs that nobody writes: begin again
            self.clear()
        (bucket,) = _hashed([f"{self._kind} {gram}"])
        self[gram] = bucket
        return bucket


_HELD = 20_000
_SAID, _BEGUN, _APART, _SPOKEN, _RAW = map(_Buckets, "c^psr")
_EMPTY = frozenset("".join(gram) for n in (3, 4) for gram in product("._", repeat=n))


@lru_cache(maxsize=1024)
def _of_concepts(concepts: str) -> frozenset[int]:
    spoken = concepts.replace("_", "").replace(".", "")[:80]
    said = spoken.translate(_FILLING)[:60]
    raw = concepts.replace('"', "")[:200]
    found = [_SAID[said[i : i + n]] for n in (1, 2, 3, 4) for i in range(len(said) - n + 1)]
    found += [_BEGUN[said[:n]] for n in (1, 2, 3)]
    found += [_APART[a + b] for away in range(2, 7) for a, b in zip(said, said[away:], strict=False)]
    found += [_SPOKEN[spoken[i : i + n]] for n in (2, 3) for i in range(len(spoken) - n + 1)]
    grams = [raw[i : i + n] for n in (3, 4) for i in range(len(raw) - n + 1)]
    found += [_RAW[gram] for gram in grams if gram not in _EMPTY]
    return frozenset(found)


@lru_cache(maxsize=1024)
def _across(bits: int) -> frozenset[int]:
    """Which concepts meet in a window: pairs across sentences, as `story … how to … harm`."""
    kinds = [chr(at) for at in range(bits.bit_length()) if bits >> at & 1]
    return frozenset(_hashed(f"x {a}{b}" for i, a in enumerate(kinds) for b in kinds[i + 1 :]))


def _marked(part: Sentence, marked: Sequence[Hit]) -> set[int]:
    return set(_hashed(f"m {hit.rule}" for hit in marked if part.start - 60 <= hit.start <= part.end))


@lru_cache(maxsize=8192)
def _of_word(word: str) -> tuple[int, tuple[int, ...]]:
    word = word[:40]
    framed = f"<{word}>"
    grams = [framed[i : i + n] for n in (3, 4, 5) for i in range(len(framed) - n + 1)]
    return zlib.crc32(word.encode("utf-8", "replace")), tuple(_hashed([f"1 {word}", *grams]))


def _hashed(features: Iterable[str]) -> Iterable[int]:
    crc32, mask = zlib.crc32, BUCKETS - 1
    return [crc32(feature.encode("utf-8", "replace")) & mask for feature in features]
