"""What one request contributes to a measure, and when it was known; pure.

A contribution adds to a measure's sum and to how many requests have it, at a time: the answer's, or that of the
feedback. So everything an analysis sees at a look is a sum over what was known by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from tuneloop.registry.experiments.declaration import AMOUNTS, Measure, Metric
from tuneloop.registry.traffic import Opinion, Outcome


class Contribution(NamedTuple):
    """What one request adds, from a time on."""

    at: datetime
    value: float
    weight: float  # how many requests have the measure by this one; 0 where it only changes the value


def contributions(metric: Metric, outcome: Outcome, opinions: Sequence[Opinion]) -> Iterator[Contribution]:
    """What a request adds to a metric's numerator (`value`) and denominator (`weight`).

    A mean, of amounts or of flags, is over the requests that have the measure: only rated ones can have thumbs-down.
    """
    if metric.per is None:
        yield from _measured(metric.measure, outcome, opinions)
        return
    for part in _measured(metric.measure, outcome, opinions):
        yield Contribution(part.at, part.value, 0.0)
    for part in _measured(metric.per, outcome, opinions):
        yield Contribution(part.at, 0.0, part.value)


def _measured(measure: Measure, outcome: Outcome, opinions: Sequence[Opinion]) -> Iterator[Contribution]:
    if outcome.is_spoilt:
        return
    if measure in {"asked", "error"}:
        yield Contribution(outcome.at, 1.0 if measure == "asked" else float(not outcome.is_answered), 1.0)
    elif not outcome.is_answered:
        return
    elif measure in {"answered", "correction"}:
        yield Contribution(outcome.at, float(measure == "answered"), 1.0)
        if measure == "correction" and (given := [o for o in opinions if o.corrected]):
            yield Contribution(given[0].at, 1.0, 0.0)
    elif measure in AMOUNTS - {"score"}:
        value = getattr(outcome, measure)
        if value is not None:
            yield Contribution(outcome.at, float(value), 1.0)
    else:
        yield from _newest(_OPINIONS[measure], opinions)


def _newest(read: Callable[[Opinion], float | None], opinions: Sequence[Opinion]) -> Iterator[Contribution]:
    """The newest opinion counts: a later one takes the earlier one's place from its own time on."""
    before: float | None = None
    for opinion in opinions:
        value = read(opinion)
        if value is not None:
            yield Contribution(opinion.at, value - (before or 0.0), float(before is None))
            before = value


_OPINIONS: dict[str, Callable[[Opinion], float | None]] = {
    "score": lambda opinion: opinion.liking,
    "rated": lambda opinion: None if opinion.thumb is None else 1.0,
    "thumbs_up": lambda opinion: None if opinion.thumb is None else float(opinion.thumb == "up"),
    "thumbs_down": lambda opinion: None if opinion.thumb is None else float(opinion.thumb == "down"),
}
