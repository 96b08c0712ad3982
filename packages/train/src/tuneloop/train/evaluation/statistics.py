"""Evaluation's arithmetic, in numpy alone: perplexity, and paired differences with bootstrap intervals.

Everything is weighted by tokens: a set's NLL is the sum over its rows divided by its trained tokens, in nats.
Cost: 10,000 resamples of 100 rows take about 30 ms.
"""

# ruff: noqa: N806 (suffixes are shapes: R rows, S samples)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Interval

RESAMPLES = 10_000


@dataclass(frozen=True)
class RowScore:
    """One row's sum of negative log-likelihood over its trained tokens (nats), and how many those are."""

    nll: float
    tokens: int


def mean_nll(rows: Sequence[RowScore]) -> float:
    """Nats per trained token over all rows."""
    return sum(row.nll for row in rows) / sum(row.tokens for row in rows)


def perplexity(rows: Sequence[RowScore]) -> float:
    """exp of the mean NLL per token."""
    return math.exp(mean_nll(rows))


def paired_difference(
    before: Sequence[RowScore],
    after: Sequence[RowScore],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """After minus before in nats per token, with a percentile bootstrap interval over rows; below 0 is better.

    Rows are resampled in pairs, so that what makes a row hard for both cancels (Koehn 2004, "Statistical significance
    tests for machine translation evaluation").

    Args:
        before: one score per row.
        after: the same rows in the same order.
        level: share of the interval.
        resamples: bootstrap samples.
        seed: of the resampling; the same input gives the same interval.

    Raises:
        InvalidInput: the two are not the same rows, or there are none.
    """
    if len(before) != len(after) or any(b.tokens != a.tokens for b, a in zip(before, after, strict=True)):
        raise InvalidInput("only scores of the same rows can be compared in pairs")
    if not before:
        raise InvalidInput("there are no rows to compare")
    gaps_R = np.array([a.nll - b.nll for b, a in zip(before, after, strict=True)])
    tokens_R = np.array([row.tokens for row in before], dtype=float)
    counts_SR = np.random.default_rng(seed).multinomial(
        len(gaps_R), np.full(len(gaps_R), 1 / len(gaps_R)), size=resamples
    )
    means_S = (counts_SR @ gaps_R) / (counts_SR @ tokens_R)
    low, high = np.quantile(means_S, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=float(gaps_R.sum() / tokens_R.sum()), low=float(low), high=float(high), level=level)
