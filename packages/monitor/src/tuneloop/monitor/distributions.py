"""How far two samples of one field are apart, by the measures people ask for by name: Kolmogorov-Smirnov's distance,
the population stability index (PSI) and Jensen-Shannon's distance.

None of them comes with a threshold: what "0.2" means depends on how many values there are on either side. So each is
held against what it gives when the same values are dealt out at random, at the level the budget allows. Bins are
quantiles of both samples together, which no deal changes: the test is exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import Statistic, permutation_test, share_above
from tuneloop.registry.errors import InvalidInput

Measure = Literal["ks", "psi", "js"]

RULE_OF_THUMB = {"psi": 0.2}  # "a significant change" in credit scoring, where samples are of tens of thousands
_BINS = 10
_MOST_VALUES = 200  # of a field of words: of more, hardly one comes twice
_EMPTY = 0.5  # added to every count for PSI, which an empty bin would make infinite


@dataclass(frozen=True)
class Compared:
    """What a measure says of one field."""

    field: str
    measure: Measure
    statistic: float
    threshold: float
    p_value: float
    alarm: bool
    bins: tuple[dict[str, Any], ...]  # of PSI and JS: what is in it, and its share of either side
    by_rule_of_thumb: float | None  # how often the usual fixed threshold is passed by chance alone, at these sizes


def compare(
    field: str,
    reference: Sequence[str | float],
    window: Sequence[str | float],
    measure: Measure,
    alpha: float,
    rng: np.random.Generator,
) -> Compared:
    """Hold a field's values of the window against those of the reference; all numbers, or all words.

    Raises:
        InvalidInput: words have no order for KS; too many different words; numbers and words, of which nobody can say
            whether 1 and "1" are the same.
    """
    pooled = [*reference, *window]
    words = [value for value in pooled if isinstance(value, str)]
    numbers = not words
    if 0 < len(words) < len(pooled):
        raise InvalidInput(
            f"--column {field} holds {len(pooled) - len(words)} numbers and {len(words)} words (like {words[0]!r}); "
            "write all of them as numbers, or all in quotes"
        )
    if not numbers and measure == "ks":
        raise InvalidInput(f"--column {field} holds words, which have no order for ks; give --by psi or --by js")
    if numbers:
        labels, of_bin = _quantiles(np.array(pooled))
    else:
        labels, of_bin = _words(field, words)
    size = len(window)
    statistic = _ks(np.array(pooled), size) if measure == "ks" else _binned(measure, of_bin)
    outcome = permutation_test(statistic, len(pooled), size, alpha=alpha, rng=rng)
    usual = RULE_OF_THUMB.get(measure)
    before = np.bincount(of_bin[: len(reference)], minlength=len(labels)) / len(reference)
    now = np.bincount(of_bin[len(reference) :], minlength=len(labels)) / size
    return Compared(
        field,
        measure,
        outcome.statistic,
        outcome.threshold,
        outcome.p_value,
        outcome.alarm,
        tuple(
            {"values": label, "reference": round(float(was), 4), "window": round(float(held), 4)}
            for label, was, held in zip(labels, before, now, strict=True)
        )
        if measure != "ks"
        else (),
        None if usual is None else share_above(usual, statistic, len(pooled), size, rng),
    )


def _ks(pooled: NDArray[np.float64], window: int) -> Statistic:
    """sup |F_window - F_reference|, at the last of equal values."""
    order = np.argsort(pooled, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(pooled[order]) > 0, True))

    def statistic(in_window: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.cumsum(in_window[:, order], axis=1)[:, ends]
        outside = (ends + 1) - inside
        result: NDArray[np.float64] = np.abs(inside / window - outside / (len(pooled) - window)).max(axis=1)
        return result

    return statistic


def _binned(measure: Measure, of_bin: NDArray[np.intp]) -> Statistic:
    held = np.eye(int(of_bin.max()) + 1)[of_bin]  # (N, bins)
    all_of_it = held.sum(axis=0)

    def statistic(in_window: NDArray[np.float64]) -> NDArray[np.float64]:
        now = in_window @ held
        return (_psi if measure == "psi" else _js)(all_of_it - now, now)

    return statistic


def _psi(reference: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.float64]:
    was, now = _shares(reference + _EMPTY), _shares(window + _EMPTY)
    result: NDArray[np.float64] = ((now - was) * np.log(now / was)).sum(axis=1)
    return result


def _js(reference: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance, the square root of the divergence in bits: 0 to 1."""
    was, now = _shares(reference), _shares(window)
    mean = (was + now) / 2
    result: NDArray[np.float64] = np.sqrt(np.maximum(_entropy(mean) - (_entropy(was) + _entropy(now)) / 2, 0.0))
    return result


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        result: NDArray[np.float64] = -np.where(shares > 0, shares * np.log2(shares), 0.0).sum(axis=1)
    return result


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return result


def _quantiles(pooled: NDArray[np.float64]) -> tuple[list[str], NDArray[np.intp]]:
    """Bins that hold about a tenth of all values each; fewer where many values are equal."""
    cuts = np.unique(np.quantile(pooled, np.arange(1, _BINS) / _BINS, method="inverted_cdf"))
    of_bin = np.searchsorted(cuts, pooled, side="left")
    used, of_used = np.unique(of_bin, return_inverse=True)
    ends = [-math.inf, *cuts.tolist(), math.inf]
    return [_between(ends[index], ends[index + 1]) for index in used.tolist()], of_used


def _between(low: float, high: float) -> str:
    if math.isinf(low):
        return "all" if math.isinf(high) else f"up to {high:g}"
    return f"above {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def _words(field: str, pooled: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    values = sorted(Counter(pooled))
    if len(values) > _MOST_VALUES:
        raise InvalidInput(
            f"--column {field} holds {len(values)} different words; {_MOST_VALUES} at most can be held side by side"
        )
    place = {value: index for index, value in enumerate(values)}
    return values, np.array([place[value] for value in pooled])
