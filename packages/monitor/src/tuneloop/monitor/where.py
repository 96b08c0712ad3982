"""Where in the traffic an alarm sits: the values of records' own fields (API key, engine, length of the prompt, time of
day …) that carry it. Pure.

Of texts, what `slices` asks of files: does a value come more or less often, and are its own texts other texts now? Of
answers that are wrong or late, and of what they cost: have its records more of it than the rest of the window, and
than they had themselves? All values of one alarm are corrected together (Holm): where every part of the traffic is as
bad as every other, one is named in one alarm of twenty at most. It is asked after an alarm alone, so it costs the
budget of alarms nothing, and it says where to look, not why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import dealt_differences, permutations_for
from tuneloop.monitor.fields import FIELDS, VERSION
from tuneloop.monitor.lines import Line
from tuneloop.monitor.slices import LEVEL, driving, surest, values_of
from tuneloop.registry.nouns import RequestRecord

MOST = 3  # an alarm names so many values at most, the surest first
FEWEST = 5  # records of a value, and of the rest, to say anything of it
_TIE = 1e-12


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
        for part in driving(before, now, kernel, rng)[:MOST]
    ]


def of_hits(
    records: Sequence[RequestRecord], hits: Sequence[bool], earlier: Sequence[tuple[RequestRecord, bool]] = ()
) -> list[dict[str, Any]]:
    """The values whose records have it more often than the others of the window, and than those of that value had
    before (where `earlier` has some); Fisher's exact test, one-sided."""
    from scipy.stats import hypergeom  # noqa: PLC0415 (half a second)

    has = np.array(hits, dtype=bool)

    def asked(held: NDArray[np.bool_]) -> tuple[float, dict[str, Any]]:
        inside, within, everywhere = int(has[held].sum()), int(held.sum()), int(has.sum())
        said = {"how": "hits", "count": inside, "of": within}
        said["rest"] = [everywhere - inside, len(has) - within]
        return float(hypergeom.sf(inside - 1, len(has), everywhere, within)), said

    return _named(records, asked, has.astype(np.float64), earlier)


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
    told = np.array(values if shown is None else shown, dtype=np.float64)
    numbers = np.array(values, dtype=np.float64)
    lines = _lines(records)
    count = permutations_for(LEVEL / max(sum(1 for _ in _candidates(lines)), 1))

    def asked(held: NDArray[np.bool_]) -> tuple[float, dict[str, Any]]:
        dealt = dealt_differences(np.concatenate([numbers[~held], numbers[held]]), int(held.sum()), count, rng)
        p_value = float((dealt >= dealt[0] - _TIE).mean())  # the observed one among them
        means = {"mean": told[held].mean(), "rest": told[~held].mean()}
        said: dict[str, Any] = {"how": "mean", "count": int(held.sum()), "of": len(numbers), "unit": unit}
        return p_value, said | {name: round(float(mean), 2) for name, mean in means.items()}

    return _named(records, asked, numbers, earlier)


def _named(
    records: Sequence[RequestRecord],
    asked: Callable[[NDArray[np.bool_]], tuple[float, dict[str, Any]]],
    figures: NDArray[np.float64],
    earlier: Sequence[tuple[RequestRecord, float]],
) -> list[dict[str, Any]]:
    """What was asked of every value, corrected; what always was as bad is none of the alarm's doing."""
    found = [(name, value, held, *asked(held)) for name, value, held in _candidates(_lines(records))]
    named = []
    for place, corrected in surest([p_value for *_, p_value, _ in found]):
        name, value, held, _, said = found[place]
        had = [figure for record, figure in earlier if FIELDS[name](record) == value]
        if not had or figures[held].mean() > sum(had) / len(had):
            named.append({"field": name, "value": value} | said | {"p_value": corrected})
    return named[:MOST]


def _candidates(lines: Sequence[Line]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    for name, values in values_of(lines):
        for value, held in values:
            if FEWEST <= held.sum() <= len(lines) - FEWEST:
                yield name, value, held


def _lines(records: Sequence[RequestRecord], without: Collection[str] = ()) -> list[Line]:
    names = [name for name in FIELDS if name not in (VERSION, *without)]
    return [
        Line(number, "", None, {name: value for name in names if (value := FIELDS[name](record)) is not None})
        for number, record in enumerate(records)
    ]
