"""A linear model over hashed n-grams of words, characters and concepts, in plain Python.

Trained by `guards/training/fit.py`; the weights are 8-bit integers in `classifier.json`. A feature counts once in a
window and each by 1/√n, so a long window needs more evidence. The score is scaled so that 0.5 lies where the false
positives of the calibration texts reach the budget. About 2 µs a word and window.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from tuneloop.registry.errors import Unreadable
from tuneloop.serve.guards.concepts import Sentence
from tuneloop.serve.guards.rules import Hit

BUCKETS = 1 << 16
WINDOW = 3  # sentences
LEAST = 80  # features, those of about four words: fewer weigh no more than if there were so many
_WEAK = frozenset("_.ABV")  # concepts that every text holds: they make no window worth a look
MODEL = Path(__file__).parent / "classifier.json"
_SCALE = 4.0  # how steep the score is around 0.5


@dataclass(frozen=True)
class Window:
    """A stretch of consecutive sentences, and what was found in it."""

    start: int
    end: int
    features: frozenset[int]


@dataclass(frozen=True)
class Classifier:
    """The weights, and the decision value at which the score is 0.5."""

    weights: array[int]  # BUCKETS × int8
    unit: float  # what one step of a weight is worth
    intercept: float
    threshold: float

    def score(self, features: frozenset[int]) -> float:
        """0–1: how likely a window with these features is an attack."""
        return 1 / (1 + math.exp(-_SCALE * max(-50.0, min(50.0, self.decision(features) - self.threshold))))

    def decision(self, features: frozenset[int]) -> float:
        """The value of the linear model."""
        if not features:
            return self.intercept
        weights = self.weights
        return self.intercept + self.unit * sum([weights[f] for f in features]) / math.sqrt(max(len(features), LEAST))


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


def windows(parts: Sequence[Sentence], marked: Sequence[Hit]) -> list[Window]:
    """Each sentence, and each run of three, in which at least two concepts meet; marks count where they stand."""
    strong = [frozenset(part.concepts) - _WEAK for part in parts]
    single: dict[int, set[int]] = {}  # made for those sentences alone that a window needs
    found = []
    for size in {1, min(WINDOW, len(parts))} - {0}:
        for first in range(len(parts) - size + 1):
            run = range(first, first + size)
            start, end = parts[run[0]].start, parts[run[-1]].end
            # An attack says what to do and with what: where only one of both is named, there is nothing to judge.
            if len(frozenset().union(*(strong[at] for at in run))) + _any_mark(marked, start, end) > 1:
                for at in run:
                    if at not in single:
                        single[at] = _features(parts[at]) | _marked(parts[at], marked)
                across = _across(parts[first : first + size]) if size > 1 else ()
                found.append(Window(start, end, frozenset().union(*(single[at] for at in run), across)))
    return found


def _any_mark(marked: Sequence[Hit], start: int, end: int) -> bool:
    return any(start - 60 <= hit.start <= end for hit in marked)


def _features(part: Sentence) -> set[int]:
    found: set[int] = set()
    for token in part.tokens:
        found.update(_of_word(token))
    found.update(_hashed(f"2 {a} {b}" for a, b in pairwise(part.tokens)))
    triples = zip(part.tokens, part.tokens[1:], part.tokens[2:], strict=False)
    found.update(_hashed(f"3 {a} {b} {c}" for a, b, c in triples))
    found.update(_of_concepts(part.concepts))
    return found


@lru_cache(maxsize=1024)
def _of_concepts(concepts: str) -> frozenset[int]:
    said = concepts.replace("_", "").replace(".", "")[:60]
    raw = concepts[:200]
    found = [f"c {said[i : i + n]}" for n in (1, 2, 3, 4) for i in range(len(said) - n + 1)]
    found += [f"p {a}{b}" for i, a in enumerate(said) for b in said[i + 2 : i + 7]]
    found += [f"r {raw[i : i + n]}" for n in (3, 4) for i in range(len(raw) - n + 1) if raw[i : i + n].strip("._")]
    return frozenset(_hashed(found))


def _across(parts: Sequence[Sentence]) -> Iterable[int]:
    """Which concepts meet in a window: pairs across sentences, as `story … how to … harm`."""
    kinds = sorted({c for part in parts for c in part.concepts} - {"_", "."})
    return _hashed(f"x {a}{b}" for i, a in enumerate(kinds) for b in kinds[i + 1 :])


def _marked(part: Sentence, marked: Sequence[Hit]) -> set[int]:
    return set(_hashed(f"m {hit.rule}" for hit in marked if part.start - 60 <= hit.start <= part.end))


@lru_cache(maxsize=8192)
def _of_word(word: str) -> tuple[int, ...]:
    word = word[:40]
    framed = f"<{word}>"
    grams = [framed[i : i + n] for n in (3, 4, 5) for i in range(len(framed) - n + 1)]
    return tuple(_hashed([f"1 {word}", *grams]))


def _hashed(features: Iterable[str]) -> Iterable[int]:
    crc32, mask = zlib.crc32, BUCKETS - 1
    return [crc32(feature.encode("utf-8", "replace")) & mask for feature in features]
