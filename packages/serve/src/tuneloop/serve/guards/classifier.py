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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import chain, combinations, pairwise, product
from pathlib import Path
from typing import NamedTuple

from tuneloop.registry.errors import Unreadable
from tuneloop.serve.guards.concepts import Sentence, Tagged
from tuneloop.serve.guards.rules import Hit

BUCKETS = 1 << 16
WINDOW = 3  # sentences
LEAST = 80  # features, those of about four words: fewer weigh no more than if there were so many
_WEAK = frozenset('_.ABVeqv"')  # concepts that every text holds: they make no window worth a look
_FILLING = str.maketrans("", "", '_.teq"')  # and those that come between others
MODEL = Path(__file__).parent / "classifier.json"
_SPREAD = 0x9E3779B1  # Knuth's multiplier
_LONGEST_WORD = 40  # characters of a word that count
PLAINLY_BENIGN = 2.0  # below the threshold: there a rule alone does not count
_SCALE = 4.0  # how steep the score is around 0.5


@dataclass(frozen=True, eq=False)
class Piece:
    """A sentence as it is judged: what it says, and the marks that stand at it."""

    tokens: tuple[str, ...]  # quotation marks left out: anybody can put them anywhere
    concepts: str
    marked: tuple[str, ...]


class Window(NamedTuple):  # as `Sentence`: made in a third of a frozen dataclass's time, dozens a text
    """A stretch of consecutive sentences, and the concepts that meet in it."""

    start: int
    end: int
    pieces: tuple[Piece, ...]
    meeting: int  # a bit each

    def features(self, *, words: bool = True) -> list[int]:
        """The buckets of its features, those of words if asked; one that several words have is there several times."""
        each = chain.from_iterable(_features(piece, words=words) for piece in self.pieces)
        return [*each, *_across(self.meeting)]


@dataclass
class Known:
    """What one reading of a text told of its sentences, for the next ones, which differ from it in few."""

    tagged: dict[str, Tagged] = field(default_factory=dict)
    unmarked: set[str] = field(default_factory=set)  # readings that were judged and bore no mark
    seen: set[tuple[str, ...]] = field(default_factory=set)  # sentences that were judged
    pieces: dict[tuple[tuple[str, ...], tuple[str, ...]], Piece] = field(default_factory=dict)
    sums: dict[Piece, tuple[int, int]] = field(default_factory=dict)  # of the weights, and how many they are


@dataclass(frozen=True)
class Classifier:
    """The weights, and the decision value at which the score is 0.5."""

    weights: array[int]  # BUCKETS × int8
    unit: float  # what one step of a weight is worth
    intercept: float
    threshold: float

    def best(self, found: Sequence[Window], known: Known | None = None) -> tuple[float, Window | None]:
        """The highest decision value and the window that has it; what several windows share is added up once."""
        sums: dict[Piece, tuple[int, int]] = {} if known is None else known.sums
        highest, where = -math.inf, None
        for window in found:
            total, size = self._meeting(window.meeting)
            for piece in window.pieces:
                if (worth := sums.get(piece)) is None:
                    worth = sums[piece] = self._worth(piece)
                total += worth[0]
                size += worth[1]
            value = self.intercept + self.unit * total / math.sqrt(max(size, LEAST))
            if value > highest:
                highest, where = value, window
        return highest, where

    def _worth(self, piece: Piece) -> tuple[int, int]:
        """The sum of a piece's weights, and how many they are: of what `features` lists, words once and for all."""
        if not piece.tokens:
            return 0, 0
        words = [self._word(word[:_LONGEST_WORD]) for word in piece.tokens]
        total, size = self._said(piece.concepts)
        for _, worth, count in set(words):
            total += worth
            size += count
        more = _runs([code for code, _, _ in words])
        more += _begun(piece.tokens)
        more += _of_marks(piece.marked)
        return total + self._total(more), size + len(more)

    def _total(self, features: Iterable[int]) -> int:
        return sum(map(self.weights.__getitem__, features))

    @cached_property
    def _word(self) -> Callable[[str], tuple[int, int, int]]:
        @lru_cache(maxsize=32_768)  # some 8 MB when full; what readings spell anew drives out no ordinary word
        def of(word: str) -> tuple[int, int, int]:
            code, grams = _of_word(word)
            return code, self._total(grams), len(grams)

        return of

    @cached_property
    def _said(self) -> Callable[[str], tuple[int, int]]:
        @lru_cache(maxsize=8192)
        def of(concepts: str) -> tuple[int, int]:
            grams = _of_concepts(concepts)
            return self._total(grams), len(grams)

        return of

    @cached_property
    def _meeting(self) -> Callable[[int], tuple[int, int]]:
        @lru_cache(maxsize=1024)
        def of(kinds: int) -> tuple[int, int]:
            pairs = _across(kinds)
            return self._total(pairs), len(pairs)

        return of

    def doubts(self, value: float) -> bool:
        """Whether a decision value is so low that a rule alone does not count."""
        return value < self.threshold - PLAINLY_BENIGN

    def score(self, value: float) -> float:
        """0–1: how likely a window of this decision value is an attack; −∞ is 0."""
        return 1 / (1 + math.exp(-_SCALE * max(-50.0, min(50.0, value - self.threshold))))


@cache
def load(path: Path = MODEL) -> Classifier:
    """The shipped classifier, one for all policies of a process: what it remembers of words is the same for each.

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


def windows(parts: Sequence[Sentence], marked: Sequence[Hit], known: Known | None = None) -> list[Window]:
    """Each sentence, and each run of three, in which at least two concepts meet; marks count where they stand.

    A run of sentences that were all seen in another reading of the text is left out.
    """
    known = known or Known()
    fresh = [part.tokens not in known.seen for part in parts]
    if True not in fresh:
        return []
    strong = [_strong(part.concepts) for part in parts]
    single: dict[int, Piece] = {}  # made for those sentences alone that a window needs
    found = []
    for size in {1, min(WINDOW, len(parts))} - {0}:
        for first in range(len(parts) - size + 1):
            if True not in fresh[first : first + size]:
                continue
            kinds = strong[first]
            for at in range(first + 1, first + size):
                kinds |= strong[at]
            # An attack says what to do and with what: where only one of both is named, there is nothing to judge.
            start, end = parts[first].start, parts[first + size - 1].end
            if kinds & (kinds - 1) or (kinds and marked and _any_mark(marked, start, end)):
                each = range(first, first + size)
                for at in each:
                    if at not in single:
                        single[at] = _piece(parts[at], marked, known)
                found.append(Window(start, end, tuple([single[at] for at in each]), kinds))
    return found


def _any_mark(marked: Sequence[Hit], start: int, end: int) -> bool:
    return any(start - 60 <= hit.start <= end for hit in marked)


@lru_cache(maxsize=1024)
def _strong(concepts: str) -> int:
    """The concepts that make a window worth a look, a bit each."""
    bits = 0
    for concept in set(concepts) - _WEAK:
        bits |= 1 << ord(concept)
    return bits


def _piece(part: Sentence, marked: Sequence[Hit], known: Known) -> Piece:
    names = tuple([hit.rule for hit in marked if part.start - 60 <= hit.start <= part.end]) if marked else ()
    if (piece := known.pieces.get((part.tokens, names))) is None:
        tokens = tuple([word for word in part.tokens if word != '"']) if '"' in part.concepts else part.tokens
        piece = known.pieces[part.tokens, names] = Piece(tokens, part.concepts, names)
    return piece


def _features(piece: Piece, *, words: bool) -> list[int]:
    if not piece.tokens:
        return []
    said = [*_of_concepts(piece.concepts), *_of_marks(piece.marked)]
    if words:
        known = [_of_word(word) for word in piece.tokens]
        said += [*_runs([code for code, _ in known]), *_begun(piece.tokens)]
        said += chain.from_iterable(grams for _, grams in dict.fromkeys(known))
    return said


def _runs(codes: Sequence[int]) -> list[int]:
    """Pairs and triples of words, hashed from the words' own hashes: half the time of new texts."""
    mask = BUCKETS - 1
    pairs = [a * _SPREAD + b for a, b in pairwise(codes)]
    triples = zip(pairs, codes[2:], strict=False)
    return [ab >> 9 & mask for ab in pairs] + [(ab * _SPREAD + c) >> 11 & mask for ab, c in triples]


def _begun(tokens: Sequence[str]) -> Iterable[int]:
    """What an order begins with."""
    return _hashed([f"^ {tokens[0]}", f"^ {' '.join(tokens[:2])}"])


def _of_marks(marked: Sequence[str]) -> Iterable[int]:
    return _hashed([f"m {rule}" for rule in dict.fromkeys(marked)]) if marked else ()


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
_SAID, _BEGUN, _APART, _SPOKEN, _RAW, _MET = map(_Buckets, "c^psrx")
_EMPTY = frozenset("".join(gram) for n in (3, 4) for gram in product("._", repeat=n))


@lru_cache(maxsize=1024)
def _of_concepts(concepts: str) -> frozenset[int]:
    spoken = concepts.replace("_", "").replace(".", "")[:80]
    said = spoken.translate(_FILLING)[:60]
    raw = concepts.replace('"', "")[:200]
    found = [_SAID[said[i : i + n]] for n in (1, 2, 3, 4) for i in range(len(said) - n + 1)]
    found += [_BEGUN[said[:n]] for n in (1, 2, 3)]
    found += [_APART[a + b] for away in range(2, 5) for a, b in zip(said, said[away:], strict=False)]
    found += [_SPOKEN[spoken[i : i + n]] for n in (2, 3) for i in range(len(spoken) - n + 1)]
    grams = [raw[i : i + n] for n in (3, 4) for i in range(len(raw) - n + 1)]
    found += [_RAW[gram] for gram in grams if gram not in _EMPTY]
    return frozenset(found)


@lru_cache(maxsize=1024)
def _across(bits: int) -> frozenset[int]:
    """Which concepts meet in a window: pairs across sentences, as `story … how to … harm`."""
    kinds = [chr(at) for at in range(bits.bit_length()) if bits >> at & 1]
    return frozenset([_MET[a + b] for a, b in combinations(kinds, 2)])


@lru_cache(maxsize=8192)
def _of_word(word: str) -> tuple[int, tuple[int, ...]]:
    """The word's own hash, and the buckets of itself and of its runs of three to five characters."""
    word, crc32, mask = word[:_LONGEST_WORD], zlib.crc32, BUCKETS - 1
    framed = f"<{word}>"
    if word.isascii():  # encoded once: a slice of bytes is the slice of characters
        spelt = framed.encode()
        runs = dict.fromkeys([spelt[i : i + n] for n in (3, 4, 5) for i in range(len(spelt) - n + 1)])
        grams = [crc32(run) & mask for run in runs]
    else:
        grams = [*_hashed(dict.fromkeys([framed[i : i + n] for n in (3, 4, 5) for i in range(len(framed) - n + 1)]))]
    return crc32(word.encode("utf-8", "replace")), (*_hashed([f"1 {word}"]), *grams)


def _hashed(features: Iterable[str]) -> Iterable[int]:
    crc32, mask = zlib.crc32, BUCKETS - 1
    return [crc32(feature.encode("utf-8", "replace")) & mask for feature in features]
