"""The detectors keep their promises: false alarms within the budget, real drifts seen, thresholds that hold."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from monitor.questions import NUMPY, STDLIB, Phrasing, ask, by_name, by_task
from tuneloop.monitor.detectors import Outcome, mean_rise_test, mmd_test, permutations_for, window_alpha
from tuneloop.monitor.features import new_words, prompt_kernel, witness
from tuneloop.monitor.latency import percentiles, slow_share_test


def drift_test(reference: list[str], window: list[str], alpha: float, seed: int) -> Outcome:
    return mmd_test(prompt_kernel(reference + window), len(reference), alpha, np.random.default_rng(seed))


def test_the_budget_is_shared_by_all_streams_and_paid_by_window() -> None:
    assert window_alpha(40, 10_000, 1) == pytest.approx(0.004)
    assert window_alpha(40, 10_000, 2) == pytest.approx(0.002)
    assert window_alpha(20, 10_000, 2) == pytest.approx(0.001)


@pytest.mark.parametrize("alpha", [0.05, 0.002, 0.0004])
def test_there_are_enough_permutations_for_a_threshold_that_is_not_the_largest_value(alpha: float) -> None:
    assert (permutations_for(alpha) + 1) * alpha >= 10


def test_without_drift_alarms_stay_within_alpha_on_real_questions() -> None:
    rng, alpha, trials = random.Random(11), 0.1, 150
    alarms = 0
    for trial in range(trials):
        questions = ask(STDLIB, 60, rng)
        alarms += drift_test(questions[:40], questions[40:], alpha, trial).alarm
    assert alarms <= binom.isf(0.001, trials, alpha)
    assert alarms >= binom.ppf(0.001, trials, alpha), "far fewer alarms than alpha: the test lost its power"


def test_false_alarms_come_no_sooner_than_the_mean_run_length_promises() -> None:
    """One frozen reference a run, windows until the first alarm: what the monitor does, on a skewed scalar."""
    window, gamma, runs = 10, 100, 60
    alpha = window_alpha(window, gamma, 1)
    rng = np.random.default_rng(5)
    waits = []
    for _ in range(runs):
        reference = rng.gamma(2.0, size=120)
        waited = 1
        while waited < 400 and not mean_rise_test(reference, rng.gamma(2.0, size=window), alpha, rng).alarm:
            waited += 1
        waits.append(waited * window)
    error = np.std(waits) / runs**0.5
    assert gamma - 2.3 * error <= np.mean(waits) <= 3 * gamma


@pytest.mark.parametrize("phrasing", [by_name, by_task])
def test_a_whole_change_of_topic_is_seen_in_one_window(phrasing: Phrasing) -> None:
    rng, trials = random.Random(13), 40
    seen = 0
    for trial in range(trials):
        reference, window = ask(STDLIB, 120, rng, phrasing), ask(NUMPY, 40, rng, phrasing)
        seen += drift_test(reference, window, window_alpha(40, 10_000, 2), trial).alarm
    assert seen >= 0.95 * trials


def test_two_questions_in_five_on_another_library_are_seen() -> None:
    rng, trials = random.Random(17), 20
    seen = 0
    for trial in range(trials):
        usual = ask(STDLIB, 144, rng)
        seen += drift_test(usual[:120], usual[120:] + ask(NUMPY, 16, rng), window_alpha(40, 10_000, 2), trial).alarm
    assert seen >= 0.9 * trials


def naive_mmd(kernel: NDArray[np.float64], n: int) -> float:
    """The textbook sum, term by term."""
    inside = [kernel[i, j] for i in range(n) for j in range(n) if i != j]
    outside = [kernel[i, j] for i in range(n, len(kernel)) for j in range(n, len(kernel)) if i != j]
    across = [kernel[i, j] for i in range(n) for j in range(n, len(kernel))]
    return float(np.mean(inside) + np.mean(outside) - 2 * np.mean(across))


def test_the_statistic_is_the_unbiased_mmd_of_the_textbook() -> None:
    points = np.random.default_rng(1).normal(size=(24, 5))
    kernel = np.exp(-((points[:, None] - points[None]) ** 2).sum(-1))
    result = mmd_test(kernel, 15, 0.05, np.random.default_rng(2))
    assert result.statistic == pytest.approx(naive_mmd(kernel, 15), abs=1e-12)


def test_alarm_p_value_and_threshold_always_say_the_same() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for shift in np.linspace(0, 2, 60):
        reference, window = rng.normal(size=30), rng.normal(shift, size=12)
        result = mean_rise_test(reference, window, 0.05, rng)
        assert result.alarm == (result.p_value <= 0.05) == (result.statistic > result.threshold)
        alarms += result.alarm
    assert 0 < alarms < 60


def test_data_without_any_variation_never_alarms() -> None:
    assert not mean_rise_test(np.ones(30), np.ones(10), 0.05, np.random.default_rng(0)).alarm
    assert not drift_test(["the same"] * 30, ["the same"] * 10, 0.05, 0).alarm


def test_a_fall_of_perplexity_is_no_alarm() -> None:
    rng = np.random.default_rng(4)
    assert not mean_rise_test(rng.normal(3, 0.5, 120), rng.normal(1, 0.5, 40), 0.002, rng).alarm
    assert mean_rise_test(rng.normal(3, 0.5, 120), rng.normal(4, 0.5, 40), 0.002, rng).alarm


def test_five_thousand_permutations_of_160_points_take_well_under_a_second() -> None:
    kernel = prompt_kernel(ask(STDLIB, 160, random.Random(1)))
    begun = time.process_time()
    assert mmd_test(kernel, 120, 0.002, np.random.default_rng(1)).permutations >= 4_999
    assert time.process_time() - begun < 2.0  # CPU seconds over all threads; 0.1 on an idle core


def test_the_examples_that_drive_a_drift_are_the_new_questions() -> None:
    rng = random.Random(19)
    usual, new = ask(STDLIB, 140, rng), ask(NUMPY, 20, rng)
    pull = witness(prompt_kernel(usual + new), 120)
    assert set(np.argsort(-pull)[:10]) <= set(range(20, 40))
    assert new_words(usual[:120], usual[120:] + new)[0].word == "numpy"
    assert new_words(usual[:70], usual[70:]) == []


def test_a_slow_share_the_objective_explains_is_no_alarm() -> None:
    assert not slow_share_test(4, 40, 0.002).alarm
    late = slow_share_test(9, 40, 0.002)
    assert late.alarm
    assert late.statistic > late.threshold
    assert [slow_share_test(k, 40, 0.002).alarm for k in range(41)] == [
        (r := slow_share_test(k, 40, 0.002)).statistic > r.threshold for k in range(41)
    ]


def test_percentiles_have_their_names() -> None:
    assert percentiles([float(v) for v in range(101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([]) == {}
