"""Where in the traffic an alarm sits: the values of records' own fields (API key, engine, length of the prompt, time of
day …) that carry it. Pure.

Of texts, what `slices` asks of files: does a value come more or less often, and are its own texts other texts now? Of
answers that are wrong or late, and of what they cost: have its records more of it than the rest of the window, and
than they had themselves? All values of one window are corrected together (Holm), and an episode, which looks again
with each window until a part is named, for its looks too (`told`): where every part of the traffic is as bad as every
other, a signal names one in one episode of twenty at most, as far as records are independent of each other. It is
asked after an alarm alone, so it costs the budget of alarms nothing, and it says where to look, not why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.fields import API_KEY, ENGINE, FIELDS, VERSION
from tuneloop.monitor.lines import Line
from tuneloop.monitor.slices import LEVEL, driving, surest, values_of
from tuneloop.registry.nouns import RequestRecord

MOST = 3  # an alarm names so many values at most, the surest first
FEWEST = 5  # records of a value, and of the rest, to say anything of it
_MOST_VALUES = 40  # of all fields together, the largest: each costs a test
_DEALS = 9_999  # of one signal's values; all parts are read off the same ones
_DEALT_AT_ONCE = 500
_TIE = 1e-12
# Whoever asks, asks many times in a row, and of the same engine: their shares differ from window to window anyway.
_IN_BURSTS = (API_KEY, ENGINE)


def told(parts: Iterable[Mapping[str, Any]], look: int) -> list[dict[str, Any]]:
    """What an episode tells of a window's parts at its `look`-th look at that signal, the first being 1.

    The k-th look may name at LEVEL / 2^k, so that all looks together name wrongly no oftener than LEVEL. The p-values
    come out corrected for that; what then is over LEVEL is left out.
    """
    corrected = [{**part, "p_value": part["p_value"] * 2**look} for part in parts]
    return [part for part in corrected if part["p_value"] <= LEVEL]


def of_texts(
    reference: Sequence[RequestRecord],
    window: Sequence[RequestRecord],
    kernel: NDArray[np.float64],
    rng: np.random.Generator,
    without: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The values that drive a change of texts, as JSON.

    Args:
        reference, window: the records. kernel: of their texts in that order; see `features.prompt_kernel`.
        rng: source of permutations. without: fields that have nothing to do with it.
    """
    before, now = _lines(reference, without), _lines(window, without)
    return [
        {
            "field": part.field,
            "value": part.value,
            "how": part.how,
            "count": part.window,
            "of": len(now),
            "before": [part.reference, len(before)],
            "p_value": part.p_value,
        }
        for part in driving(before, now, kernel, rng, in_bursts=_IN_BURSTS)[:MOST]
    ]


def of_hits(
    records: Sequence[RequestRecord], hits: Sequence[bool], earlier: Sequence[tuple[RequestRecord, float]] = ()
) -> list[dict[str, Any]]:
    """The values whose records have it more often than the others of the window, and than those of that value had
    before (where `earlier` has some); Fisher's exact test, one-sided."""
    from scipy.stats import hypergeom  # noqa: PLC0415 (half a second)

    has = np.array(hits, dtype=bool)
    everywhere = int(has.sum())
    found: list[_Tested] = []
    for name, value, held in _candidates(_lines(records)):
        inside, within = int(has[held].sum()), int(held.sum())
        said = {"how": "hits", "count": inside, "of": within, "rest": [everywhere - inside, len(has) - within]}
        p_value = float(hypergeom.sf(inside - 1, len(has), everywhere, within))
        found.append(_Tested(name, value, p_value, inside / within, said))
    return _named(found, earlier)


def of_values(
    records: Sequence[RequestRecord],
    values: Sequence[float],
    rng: np.random.Generator,
    earlier: Sequence[tuple[RequestRecord, float]] = (),
    *,
    unit: str,
    shown: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """The values of fields whose records have a higher mean than the others of the window, and than those of that value
    had before (where `earlier` has some); by permutation, one-sided.

    Args:
        records: of the window. values: one of each, more is worse. rng: source of permutations.
        earlier: records of the reference with theirs.
        unit: of the figures that are shown. shown: one of each record; `values` where none are given.
    """
    figures = np.array(values if shown is None else shown, dtype=np.float64)
    numbers = np.array(values, dtype=np.float64)
    candidates = _candidates(_lines(records))
    if not candidates:
        return []
    p_values = _higher(numbers, np.array([held for *_, held in candidates]), rng)
    found = []
    for (name, value, held), p_value in zip(candidates, p_values, strict=True):
        means = {"mean": figures[held].mean(), "rest": figures[~held].mean()}
        said: dict[str, Any] = {"how": "mean", "count": int(held.sum()), "of": len(numbers), "unit": unit}
        said |= {what: round(float(mean), 2) for what, mean in means.items()}
        found.append(_Tested(name, value, float(p_value), float(numbers[held].mean()), said))
    return _named(found, earlier)


@dataclass(frozen=True)
class _Tested:
    """A value of a field, before its p-value is corrected."""

    field: str
    value: str
    p_value: float
    mean: float  # of what was tested, of its records
    said: dict[str, Any]


def _higher(numbers: NDArray[np.float64], held: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Of each of S sets of the N numbers (`held` has shape (S, N)), in what share of deals its sum is as high as it is,
    the observed one among them; shape (S,)."""
    parts = held.T.astype(np.float64)
    least = numbers @ parts - _TIE * max(1.0, float(np.abs(numbers).sum()))
    as_high = np.ones(parts.shape[1])
    for start in range(0, _DEALS, _DEALT_AT_ONCE):
        dealt = rng.permuted(np.tile(numbers, (min(_DEALT_AT_ONCE, _DEALS - start), 1)), axis=1)
        as_high += (dealt @ parts >= least).sum(axis=0)
    found: NDArray[np.float64] = as_high / (_DEALS + 1)
    return found


def _named(found: Sequence[_Tested], earlier: Sequence[tuple[RequestRecord, float]]) -> list[dict[str, Any]]:
    """What was found of every value, corrected; what always was as bad is none of the alarm's doing."""
    named = []
    for place, corrected in surest([tested.p_value for tested in found]):
        part = found[place]
        had = [figure for record, figure in earlier if FIELDS[part.field](record) == part.value]
        if not had or part.mean > sum(had) / len(had):
            named.append({"field": part.field, "value": part.value} | part.said | {"p_value": corrected})
    return named[:MOST]


def _candidates(lines: Sequence[Line]) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """The values with enough records, and enough of the rest; the largest where there are many."""
    found = [
        (name, value, held)
        for name, values in values_of(lines)
        for value, held in values
        if FEWEST <= held.sum() <= len(lines) - FEWEST
    ]
    if len(found) <= _MOST_VALUES:
        return found
    return sorted(found, key=lambda one: -int(one[2].sum()))[:_MOST_VALUES]


def _lines(records: Sequence[RequestRecord], without: Collection[str] = ()) -> list[Line]:
    names = [name for name in FIELDS if name not in (VERSION, *without)]
    return [
        Line(number, "", None, {name: value for name in names if (value := FIELDS[name](record)) is not None})
        for number, record in enumerate(records)
    ]
