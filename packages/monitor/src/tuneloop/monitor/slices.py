"""Which part of the traffic a drift sits in: values of the lines' own fields, and times of day, each tested and
corrected.

Two questions of each value: did its share change (Fisher's exact test), and are its own texts other texts now (MMD²
inside the value, permutation test: like is held against like, so a window of the night is held against the reference's
nights). All answers are corrected together (Holm), so that a field that has nothing to do with it is named once in
twenty checks. A field tells nothing where the texts of every value of it are others, and few of the window have none of
these values: the change is everywhere then; and of two values one that came oftener says all that the other does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneloop.monitor.detectors import mmd_test
from tuneloop.monitor.lines import Line

LEVEL = 0.05  # of naming any value wrongly
LEAST = 10  # texts of a value on either side for a test of its texts; in all for one of its share
TIME_OF_DAY = "time of day"
_MOST_VALUES = 24  # a field of more is a name or an identifier, not a slice
_MOST_TESTS = 200
_MOST_TEXTS = 240  # of a value and side, for the test of its texts
_HOURS = 6


@dataclass(frozen=True)
class Slice:
    """A value of a field that drives the drift."""

    field: str
    value: str
    how: str  # `share`: it came more or less often; `texts`: its own texts changed
    reference: int  # texts of it
    window: int
    p_value: float  # corrected


def driving(
    reference: Sequence[Line],
    window: Sequence[Line],
    kernel: NDArray[np.float64],
    rng: np.random.Generator,
    in_bursts: Collection[str] = (),
) -> list[Slice]:
    """The values that differ between the two, the surest first.

    Args:
        reference, window: the lines. kernel: of both together, in that order.
        rng: source of permutations.
        in_bursts: fields whose values come many at a time: their share tells nothing, and only their texts are read.
    """
    tests = [*_tests(reference, window, kernel, rng, (TIME_OF_DAY, *in_bursts))]
    sure = surest([test.p_value for test in tests])
    named = [replace(tests[place], p_value=corrected) for place, corrected in sure]
    return [one for one in named if _tells(one, named, tests, len(reference), len(window))]


def _tells(one: Slice, named: Sequence[Slice], tests: Sequence[Slice], before: int, now: int) -> bool:
    """Whether it says more than that something changed, in so many lines of either side."""
    asked = [test for test in tests if (test.field, test.how) == (one.field, one.how)]
    told = sum((other.field, other.how) == (one.field, one.how) for other in named)
    if told < len(asked):
        return True
    if one.how == "texts":
        return now - sum(test.window for test in asked) >= LEAST  # otherwise everywhere
    if told < 2:
        return True
    both = told == 2 and sum(t.reference for t in asked) == before and sum(t.window for t in asked) == now
    return not both or one.window * before > one.reference * now


def surest(p_values: Sequence[float]) -> list[tuple[int, float]]:
    """The places of the p-values that stand at LEVEL once all are corrected together (Holm), the surest first, with
    what they are then."""
    found: list[tuple[int, float]] = []
    corrected = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        corrected = max(corrected, min(1.0, p_values[place] * (len(p_values) - rank)))
        if corrected > LEVEL:
            break
        found.append((place, corrected))
    return found


def _tests(
    reference: Sequence[Line],
    window: Sequence[Line],
    kernel: NDArray[np.float64],
    rng: np.random.Generator,
    no_share: Collection[str],
) -> Iterator[Slice]:
    """Each with its p-value before it is corrected; a window is of one time, so the shares of its hours are its own."""
    from scipy.stats import fisher_exact  # noqa: PLC0415 (half a second)

    lines = [*reference, *window]
    in_window = np.arange(len(lines)) >= len(reference)
    candidates = [(name, value, held) for name, values in values_of(lines) for value, held in values][
        : _MOST_TESTS // 2
    ]
    alpha = LEVEL / max(2 * len(candidates), 1)
    for name, value, held in candidates:
        before, now = int((held & ~in_window).sum()), int((held & in_window).sum())
        if name not in no_share and before + now >= LEAST:
            table = [[before, len(reference) - before], [now, len(window) - now]]
            p_value = float(fisher_exact(table).pvalue)
            yield Slice(name, value, "share", before, now, p_value)
        if min(before, now) >= LEAST:
            rows = np.concatenate(
                [np.flatnonzero(held & ~in_window)[:_MOST_TEXTS], np.flatnonzero(held & in_window)[:_MOST_TEXTS]]
            )
            p_value = mmd_test(kernel[np.ix_(rows, rows)], min(before, _MOST_TEXTS), alpha, rng).p_value
            yield Slice(name, value, "texts", before, now, p_value)


def values_of(lines: Sequence[Line]) -> Iterator[tuple[str, list[tuple[str, NDArray[np.bool_]]]]]:
    """Each field that is a slice, with its values and which lines have them."""
    columns: dict[str, list[str | None]] = {}
    for name in sorted({name for line in lines for name, value in line.fields.items() if not isinstance(value, float)}):
        columns[name] = [_said(line.fields.get(name)) for line in lines]
    if all(line.at is not None for line in lines):
        columns[TIME_OF_DAY] = [_part_of_day(line) for line in lines]
    for name, column in columns.items():
        counts = Counter(value for value in column if value is not None)
        if 1 < len(counts) <= _MOST_VALUES:
            yield name, [(value, np.array([held == value for held in column])) for value in sorted(counts)]


def _said(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else None


def _part_of_day(line: Line) -> str | None:
    if line.at is None:
        return None
    first = line.at.hour // _HOURS * _HOURS
    return f"{first:02d}-{first + _HOURS:02d} UTC"
