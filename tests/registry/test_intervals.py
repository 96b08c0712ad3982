"""Intervals are what SciPy says they are, and hold what they should as often as they say."""

from __future__ import annotations

import random

import pytest
from scipy.stats import binom, binomtest

from tuneloop.registry.statistics.intervals import quantile_interval, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 9), (4, 9), (9, 9), (130, 1_000)])
def test_the_interval_is_wilsons_as_scipy_has_it(successes: int, trials: int) -> None:
    theirs = binomtest(successes, trials).proportion_ci(method="wilson")
    mine = wilson(successes, trials)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 10, 71, 72, 100, 500, 2_000])
def test_the_interval_is_made_of_the_binomials_order_statistics(n: int) -> None:
    values = [float(value) for value in range(1, n + 1)]  # each value is its own rank
    random.Random(0).shuffle(values)
    low = max((k for k in range(1, n + 1) if binom.cdf(k - 1, n, 0.95) <= 0.025), default=None)
    high = min((k for k in range(1, n + 1) if binom.cdf(k - 1, n, 0.95) >= 0.975), default=None)
    assert quantile_interval(values, 0.95, 0.95)[1:] == (low, high)


def test_the_interval_holds_the_quantile_as_often_as_it_says() -> None:
    draw = random.Random(1)
    held = 0
    for _ in range(400):
        values = [draw.expovariate(1.0) for _ in range(200)]
        _, low, high = quantile_interval(values, 0.95, 0.95)
        assert low is not None
        assert high is not None
        held += low <= 2.9957 <= high  # −ln 0.05
    assert held / 400 > 0.93
