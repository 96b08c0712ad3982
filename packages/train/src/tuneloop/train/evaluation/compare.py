"""Before against after: every measure of a set, over all its rows and slice by slice, with bootstrap intervals.

Both are measured on the same rows, which are resampled in pairs. A slice's intervals are 95 % each: of twenty slices,
one leaves zero outside by chance. Too few rows give no interval, and of a slice no figure at all; nor do rows that all
score alike give one.
"""

# ruff: noqa: N803, N806 (suffixes are shapes: R rows, S samples, K sums)

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tuneloop.registry.nouns import Interval
from tuneloop.registry.printing import table
from tuneloop.train.data.rows import Row
from tuneloop.train.evaluation import bleu
from tuneloop.train.evaluation.measure import EvaluationSet, SetScore
from tuneloop.train.evaluation.statistics import RESAMPLES, Array, Statistic, bootstrap

NO_GROUP = "(none)"  # rows without the field that is sliced by
_NAMED = 8  # slices named in one line


@dataclass(frozen=True)
class Spread:
    """An estimate, and its interval where there are rows enough."""

    estimate: float
    interval: Interval | None

    def shown(self, digits: int, *, sign: bool = False) -> str:
        """`0.42 [0.31, 0.55]`, or the estimate alone."""
        form = f"{'+' if sign else ''}.{digits}f"
        if self.interval is None:
            return format(self.estimate, form)
        return f"{self.estimate:{form}} [{self.interval.low:{form}}, {self.interval.high:{form}}]"


@dataclass(frozen=True)
class Compared:
    """One measure of one set, or of one slice of it, before and after.

    The difference is after minus before; for perplexity it is the difference of NLL, in nats per token.
    """

    measure: str
    set_name: str
    group: str | None  # the slice; None: the whole set
    rows: int
    before: Spread
    after: Spread
    difference: Spread

    @property
    def digits(self) -> int:
        """Decimals worth showing."""
        return {"perplexity": 2, "bleu": 1}.get(self.measure, 3)

    @property
    def difference_shown(self) -> str:
        """The difference with its interval, in its unit."""
        digits, unit = (3, " nats/token") if self.measure == "perplexity" else (self.digits, "")
        return self.difference.shown(digits, sign=True) + unit


@dataclass(frozen=True)
class Comparison:
    """Everything measured on one set, and the slices that have too few rows for each measure."""

    set_name: str
    measures: tuple[Compared, ...]
    too_few: tuple[tuple[str, str, int], ...]  # measure, slice, its rows
    min_rows: int

    @property
    def whole(self) -> tuple[Compared, ...]:
        """Those over all rows."""
        return tuple(found for found in self.measures if found.group is None)

    @property
    def slices(self) -> tuple[Compared, ...]:
        """Those of slices."""
        return tuple(found for found in self.measures if found.group is not None)

    def interval_metrics(self) -> dict[str, dict[str, float]]:
        """before, after → `<measure>.<set>.low` and `.high`, of the measures over all rows that have intervals."""
        found: dict[str, dict[str, float]] = {"before": {}, "after": {}}
        for compared in self.whole:
            key = f"{compared.measure}.{compared.set_name}"
            for when, spread in (("before", compared.before), ("after", compared.after)):
                if spread.interval is not None:
                    found[when] |= {f"{key}.low": spread.interval.low, f"{key}.high": spread.interval.high}
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not shown, and why: a line a measure."""
        groups: dict[str, list[str]] = {}
        for measure, group, rows in self.too_few:
            groups.setdefault(measure, []).append(f"{group} ({rows})")
        return tuple(
            f"{self.set_name}, {measure}: not enough rows (under {self.min_rows}) in {len(names)} slices: "
            + ", ".join(names[:_NAMED])
            + (", …" if len(names) > _NAMED else "")
            for measure, names in groups.items()
        )


def shown_table(comparisons: Sequence[Comparison]) -> str:
    """Set by set and measure by measure, as a screen shows it; slices below, and what is too small to be shown."""
    whole = [found for comparison in comparisons for found in comparison.whole]
    head = ("held-out set", "rows", "measure", "before", "after", "difference (95 % interval)")
    parts = [table(head, [(found.set_name, found.rows, *_cells(found)) for found in whole])]
    slices = [found for comparison in comparisons for found in comparison.slices]
    if slices:
        rows = [(found.set_name, found.group, found.rows, *_cells(found)) for found in slices]
        parts.append(table(("held-out set", "slice", *head[1:]), rows))
    parts += [note for comparison in comparisons for note in comparison.notes]
    return "\n\n".join(parts)


def _cells(found: Compared) -> tuple[str, str, str, str]:
    digits = found.digits
    before, after = f"{found.before.estimate:.{digits}f}", f"{found.after.estimate:.{digits}f}"
    return found.measure, before, after, found.difference_shown


def compare(chosen: EvaluationSet, before: SetScore, after: SetScore, *, min_rows: int) -> Comparison:
    """Both sides of one set.

    Args:
        chosen: the set; rows with a `group` are also shown by it, the largest group first.
        before: one model's scores.
        after: the other's, on the same rows.
        min_rows: a slice with fewer is left out and named; a whole set with fewer gets no intervals.
    """
    groups: dict[str | None, int] = {None: len(chosen.rows)}
    if any(row.group is not None for row in chosen.rows):
        groups.update(Counter(row.group or NO_GROUP for row in chosen.rows).most_common())
    found: list[Compared] = []
    too_few: list[tuple[str, str, int]] = []
    for measure in _measures(chosen, before, after):
        labels = [row.group or NO_GROUP for row in measure.rows]
        for group in groups:
            stats_RK = measure.stats[[group is None or label == group for label in labels]]
            if group is not None and len(stats_RK) < min_rows:
                too_few.append((measure.name, group, len(stats_RK)))
            else:
                found.append(_compared(measure, chosen.name, group, stats_RK, min_rows))
    return Comparison(chosen.name, tuple(found), tuple(too_few), min_rows)


@dataclass(frozen=True)
class _Measure:
    """What is summed over which rows, and what becomes of the sums: before, after, difference."""

    name: str
    rows: Sequence[Row]
    stats: Array  # (R, K)
    statistic: Statistic
    resamples: int = RESAMPLES


def _measures(chosen: EvaluationSet, before: SetScore, after: SetScore) -> Iterator[_Measure]:
    pairs = list(zip(before.rows, after.rows, strict=True))
    nll_RK = np.array([[b.nll, a.nll, a.tokens] for b, a in pairs], dtype=float)
    yield _Measure("perplexity", chosen.rows, nll_RK, _perplexities)
    if not chosen.asked:
        return
    references = [row.answer for row in chosen.asked]
    sides = [bleu.bleu_stats([answer.text for answer in side.answers], references) for side in (before, after)]
    yield _Measure("bleu", chosen.asked, np.hstack(sides), bleu.before_after_gain, bleu.RESAMPLES)
    for name in before.by_row:
        if name in after.by_row:
            scores_RK = np.array([before.by_row[name], after.by_row[name], np.ones(len(references))]).T
            yield _Measure(name, chosen.asked, scores_RK, _means)


def _perplexities(sums_SK: Array) -> Array:
    before, after, tokens = sums_SK.T
    return np.array([np.exp(before / tokens), np.exp(after / tokens), (after - before) / tokens]).T


def _means(sums_SK: Array) -> Array:
    before, after, rows = sums_SK.T
    return np.array([before / rows, after / rows, (after - before) / rows]).T


def _compared(measure: _Measure, set_name: str, group: str | None, stats_RK: Array, min_rows: int) -> Compared:
    intervals = bootstrap(stats_RK, measure.statistic, resamples=measure.resamples)
    enough = len(stats_RK) >= min_rows
    # Resampling rows that all score alike says nothing: zero of twelve right is not certainly zero.
    spreads = (Spread(found.estimate, found if enough and found.low < found.high else None) for found in intervals)
    before, after, gap = spreads
    return Compared(measure.name, set_name, group, len(stats_RK), before, after, gap)
