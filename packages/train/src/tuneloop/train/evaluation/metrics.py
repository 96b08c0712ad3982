"""Scores of generated answers against their references, one number a row, higher is better.

Built in are `exact_match` and `token_f1`, both after SQuAD's normalisation (Rajpurkar et al. 2016): NFKC, lower case,
no punctuation, no English articles, single spaces; where nothing is left of either text, the texts themselves count.
A user's own come by the entry point group `tuneloop.metrics`, or as a script of the `evaluate` package on this
machine. One score a row is what lets every metric have paired intervals and slices.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput

GROUP = "tuneloop.metrics"
TAKEN = frozenset({"perplexity", "nll", "bleu"})
_NAME = re.compile(r"^[a-z][a-z0-9_]{0,40}$")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Metric:
    """A named scorer: answers and their references in, one score per row out."""

    name: str
    scorer: Scorer

    def rows(self, answers: Sequence[str], references: Sequence[str]) -> tuple[float, ...]:
        """One finite score per row.

        Raises:
            InvalidInput: the scorer fails, or returns something else; the message names it.
        """
        try:
            found = tuple(float(score) for score in self.scorer(list(answers), list(references)))
        except Exception as error:
            raise InvalidInput(f"metric {self.name} failed: {type(error).__name__}: {error}") from error
        if len(found) != len(answers) or not all(map(math.isfinite, found)):
            raise InvalidInput(
                f"metric {self.name} gave {len(found)} scores for {len(answers)} answers, "
                f"{sum(map(math.isfinite, found))} of them finite; it must return one finite number per row"
            )
        return found


def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 where answer and reference are equal after normalising, else 0."""
    return [float(_normal(a, b)[0] == _normal(a, b)[1]) for a, b in zip(answers, references, strict=True)]


def token_f1(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Harmonic mean of precision and recall over the bag of normalised words, 0 to 1."""
    return [_f1(*(text.split() for text in _normal(a, b))) for a, b in zip(answers, references, strict=True)]


_BUILT_IN: Mapping[str, Scorer] = {"exact_match": exact_match, "token_f1": token_f1}


def find_metrics(names: Sequence[str], folder: Path) -> tuple[Metric, ...]:
    """The metrics a recipe names.

    Args:
        names: built-in names, entry points, or paths that end in .py.
        folder: what a path is relative to, the recipe's.

    Raises:
        InvalidInput: a name is unknown (the message lists those that are known), taken or doubled; a script or an
            entry point cannot be loaded.
    """
    found = tuple(_script(name, folder) if name.endswith(".py") else _named(name) for name in names)
    doubled = [name for name, count in Counter(metric.name for metric in found).items() if count > 1]
    if doubled:
        raise InvalidInput(f"evaluate.metrics names {doubled[0]} twice")
    return found


def known_metrics() -> list[str]:
    """Every name a recipe may use on this machine."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def _named(name: str) -> Metric:
    if name in _BUILT_IN:
        return Metric(name, _BUILT_IN[name])
    point = next(iter(entry_points(group=GROUP, name=name)), None)
    if point is None:
        raise InvalidInput(
            f"evaluate.metrics: there is no metric {name!r}; known are {', '.join(known_metrics())}; others come from "
            f"a package, by entry point {GROUP}, or from a script of the evaluate package such as ./my_metric.py"
        )
    _refuse_name(name)
    try:
        scorer = point.load()
    except Exception as error:
        raise InvalidInput(
            f"metric {name} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not callable(scorer):
        raise InvalidInput(f"metric {name} ({point.value}) is {type(scorer).__name__}, not a function")
    return Metric(name, scorer)


def _script(name: str, folder: Path) -> Metric:
    path = folder / name
    if not path.is_file():
        raise InvalidInput(f"evaluate.metrics: there is no script {path}")
    _refuse_name(path.stem)
    import evaluate  # noqa: PLC0415 (a second, and only for who brings a script)

    try:
        module = evaluate.load(str(path.resolve()), keep_in_memory=True)
    except Exception as error:
        raise InvalidInput(f"metric script {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return Metric(path.stem, lambda answers, references: _ask_script(module, path.stem, answers, references))


def _ask_script(module: Any, name: str, answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Row by row, about 20 ms each: what a script gives for many rows at once cannot be resampled."""
    scores = []
    for answer, reference in zip(answers, references, strict=True):
        found = module.compute(predictions=[answer], references=[reference])
        numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
        if name not in numbers and len(numbers) != 1:
            raise ValueError(f"it gives {', '.join(map(str, found))}; one number, or one called {name}, is needed")
        scores.append(float(numbers.get(name, next(iter(numbers.values())))))
    return scores


def _refuse_name(name: str) -> None:
    if name in TAKEN or name in _BUILT_IN or not _NAME.match(name):
        raise InvalidInput(
            f"a metric cannot be called {name!r}: small letters, digits and _, and none of "
            f"{', '.join(sorted(TAKEN | set(_BUILT_IN)))}"
        )


def _normal(answer: str, reference: str) -> tuple[str, str]:
    """Both normalised; where nothing is left of either (`==` against `!=`), only trimmed."""
    one, other = _squad(answer), _squad(reference)
    return (one, other) if one or other else (answer.strip(), reference.strip())


def _squad(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", folded).split())


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference)) if shared else float(list(answer) == list(reference))
