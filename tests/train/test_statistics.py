"""Evaluation's arithmetic against values worked out by hand and by an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.evaluation.statistics import RowScore, mean_nll, paired_difference, perplexity

BEFORE = [RowScore(6.0, 2), RowScore(4.0, 4), RowScore(10.0, 5)]
AFTER = [RowScore(5.0, 2), RowScore(4.5, 4), RowScore(6.0, 5)]


def test_perplexity_weighs_tokens_not_rows() -> None:
    assert mean_nll(BEFORE) == 20 / 11
    assert perplexity(BEFORE) == math.exp(20 / 11)


def test_the_difference_is_nats_per_token() -> None:
    found = paired_difference(BEFORE, AFTER)
    assert found.estimate == pytest.approx((-1.0 + 0.5 - 4.0) / 11)
    assert found.low <= found.estimate <= found.high


def test_equal_gaps_leave_no_doubt() -> None:
    before = [RowScore(float(n), 4) for n in range(1, 9)]
    after = [RowScore(row.nll - 2.0, 4) for row in before]
    found = paired_difference(before, after)
    assert (found.low, found.estimate, found.high) == (-0.5, -0.5, -0.5)


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 40, size=80)
    before = [RowScore(float(3.0 * n), int(n)) for n in tokens]
    after = [RowScore(row.nll + float(rng.normal(-0.1, 0.4)) * row.tokens, row.tokens) for row in before]
    gaps = np.array([a.nll - b.nll for a, b in zip(after, before, strict=True)])
    reference = stats.bootstrap(
        (gaps, tokens.astype(float)),
        lambda g, t, axis: g.sum(axis=axis) / t.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    found = paired_difference(before, after, resamples=20_000)
    assert found.low == pytest.approx(reference.low, abs=0.004)
    assert found.high == pytest.approx(reference.high, abs=0.004)


def test_the_same_input_gives_the_same_interval() -> None:
    assert paired_difference(BEFORE, AFTER) == paired_difference(BEFORE, AFTER)


@pytest.mark.parametrize("after", [AFTER[:2], [RowScore(5.0, 3), *AFTER[1:]]])
def test_scores_of_different_rows_are_never_compared(after: list[RowScore]) -> None:
    with pytest.raises(InvalidInput, match="same rows"):
        paired_difference(BEFORE, after)
