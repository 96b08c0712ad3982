"""The CUSUM keeps its mean run length exactly, for any distribution, and sees a shift about as soon as can be."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest

from tuneloop.monitor.cusum import Cusum, mean_run_length, threshold_for

Draw = Callable[[int, np.random.Generator], NDArray[np.float64]]


@pytest.mark.parametrize(("run_length", "delay"), [(1e3, 31.1), (1e4, 49.1), (1e5, 67.5)])
def test_the_solved_equation_gives_the_optimal_delays_of_the_literature(run_length: float, delay: float) -> None:
    threshold = threshold_for(run_length, 0.5, sides=1)
    assert mean_run_length(threshold, 0.25) == pytest.approx(run_length, rel=1e-4)
    assert mean_run_length(threshold, 0.25, 0.5) == pytest.approx(delay, abs=0.1)


@pytest.mark.parametrize("threshold", [4.0, 9.0, 15.0])
def test_the_solved_equation_agrees_with_siegmunds_approximation(threshold: float) -> None:
    """Siegmund, "Sequential Analysis", 1985: exp(2db) - 2db - 1 over 2d², with b = threshold + 1.166, d = allowance."""
    power = 2 * 0.25 * (threshold + 1.166)
    assert mean_run_length(threshold, 0.25) == pytest.approx((math.exp(power) - power - 1) / (2 * 0.25**2), rel=0.02)


STREAMS: dict[str, tuple[int, Draw]] = {
    "skewed, a tiny reference": (5, lambda n, rng: rng.gamma(0.5, size=n)),
    "whole numbers with ties": (60, lambda n, rng: np.floor(rng.gamma(1.0, 4.0, size=n))),
    "rare ones": (200, lambda n, rng: (rng.random(n) < 0.02).astype(float)),
    "without a mean": (60, lambda n, rng: rng.standard_cauchy(n)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_mean_run_length_is_what_was_asked_for_whatever_the_distribution(name: str) -> None:
    size, draw = STREAMS[name]
    asked, replays = 100, 250
    waits = []
    for seed in range(replays):
        rng = np.random.default_rng([seed, size])
        cusum = Cusum(draw(size, rng), asked, rng)
        changes = cusum.feed(draw(12 * asked, rng))
        waits.append(changes[0].at + 1 if changes else 12 * asked)
    assert abs(np.mean(waits) - asked) < 3.5 * np.std(waits) / replays**0.5
    assert abs(np.mean(waits) - asked) < 0.2 * asked


def test_ranks_are_uniform_and_independent_also_across_blocks() -> None:
    rng = np.random.default_rng(3)
    values = np.floor(rng.gamma(1.0, 3.0, size=3_030))
    cusum = Cusum(values[:30], 1e4, rng)
    scores = np.concatenate([cusum._scores(values[start : start + 250]) for start in range(30, 3_030, 250)])
    assert kstest(scores, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(scores[:-1], scores[1:])[0, 1]) < 4 / 3_000**0.5


@pytest.mark.parametrize(("shift", "direction"), [(1.0, "up"), (-1.0, "down")])
def test_a_shift_is_seen_within_half_as_much_again_as_the_optimum(shift: float, direction: str) -> None:
    run_length, replays = 10_000, 60
    best = mean_run_length(threshold_for(run_length, 1.0, sides=1), 0.5, 1.0)
    waits, begins = [], []
    for seed in range(replays):
        rng = np.random.default_rng(seed)
        cusum = Cusum(rng.normal(size=600), run_length, rng, shift=1.0)
        assert cusum.feed(rng.normal(size=40)) == []
        (change, *_) = cusum.feed(rng.normal(shift, size=200))
        assert change.direction == direction
        waits.append(change.at + 1 - 40)
        begins.append(change.since - 40)
    assert np.mean(waits) <= 1.5 * best
    assert abs(np.median(begins)) <= 3


def test_memory_and_answers_do_not_depend_on_how_the_values_are_handed_over() -> None:
    values = np.random.default_rng(5).normal(size=20_000)
    values[15_000:] += 1
    whole, parts = (Cusum(values[:9_000], 1e5, np.random.default_rng(1)) for _ in range(2))
    alarms = whole.feed(values[9_000:])
    again = [change for start in range(9_000, 20_000, 512) for change in parts.feed(values[start : start + 512])]
    assert alarms == again
    assert 6_000 <= alarms[0].at <= 6_060
    assert len(whole._counts) <= 2 * 4_096 + 1


def test_a_stream_that_never_varies_is_quiet() -> None:
    assert Cusum(np.ones(50), 1e5, np.random.default_rng(0)).feed(np.ones(500)) == []
