"""The test of texts is exact by construction, and sees a few texts of another topic among many of the usual one."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import binom

from monitor.questions import NUMPY, STDLIB, ask
from tuneloop.monitor.detectors import Statistic, mmd_test, strongest_test, window_alpha
from tuneloop.monitor.features import prompt_kernel
from tuneloop.monitor.shares import presence, rising
from tuneloop.monitor.textdrift import text_test

ALPHA = window_alpha(40, 10_000, 3)  # what the monitor leaves a window of 40


def test_without_drift_alarms_come_as_often_as_the_level_says_on_real_questions() -> None:
    rng, alpha, trials = random.Random(41), 0.1, 80
    alarms = 0
    for trial in range(trials):
        questions = ask(STDLIB, 40, rng)
        alarms += text_test(questions, 28, alpha, np.random.default_rng(trial)).outcome.alarm
    assert binom.ppf(0.001, trials, alpha) <= alarms <= binom.isf(0.001, trials, alpha)


def test_looking_three_times_costs_no_false_alarm() -> None:
    """Statistics of one sample that share nothing, so that each alone would add its own alarms."""
    alpha, trials = 0.05, 300
    alarms = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        looks: dict[str, Statistic] = {str(n): rng.standard_cauchy(30).__rmatmul__ for n in range(3)}
        alarms += strongest_test(looks, 30, 8, alpha=alpha, rng=rng)[0].alarm
    assert binom.ppf(0.001, trials, alpha) <= alarms <= binom.isf(0.001, trials, alpha)


def test_labellings_that_only_rounding_tells_apart_count_as_equal() -> None:
    """What sums come to for one row in or out, where the observed one was added up in a luckier order."""

    def statistic(labellings: np.ndarray) -> np.ndarray:
        observed = labellings[:, -8:].all(axis=1)
        return 1e-3 * labellings[:, -1] + 1e-12 * observed

    found, _ = strongest_test({"one": statistic}, 30, 8, alpha=0.05, rng=np.random.default_rng(1))
    assert found.p_value == pytest.approx(8 / 30, abs=0.05)
    assert not found.alarm
    assert found.statistic <= found.threshold


def test_the_looks_do_not_depend_on_the_order_of_either_side() -> None:
    rng = random.Random(43)
    usual = ask(STDLIB, 75, rng)
    reference, window = usual[:60], usual[60:]
    first = text_test([*reference, *window], 60, 0.05, np.random.default_rng(1)).looks
    shuffled = [*rng.sample(reference, 60), *rng.sample(window, 15)]
    again = text_test(shuffled, 60, 0.05, np.random.default_rng(1)).looks
    assert again == {name: pytest.approx(value, abs=0.25) for name, value in first.items()}, (
        "but for the permutations drawn"
    )


def test_one_question_in_five_on_another_library_is_seen_where_the_mean_alone_sees_it_seldom() -> None:
    rng, trials = random.Random(47), 8
    seen, by_mean = 0, 0
    for trial in range(trials):
        usual, new = ask(STDLIB, 152, rng), ask(NUMPY, 8, rng)
        found = text_test([*usual, *new], 120, ALPHA, np.random.default_rng(trial))
        seen += found.outcome.alarm
        by_mean += mmd_test(prompt_kernel([*usual, *new]), 120, ALPHA, np.random.default_rng(trial)).alarm
    assert seen >= 0.9 * trials
    assert by_mean <= 0.3 * trials


def test_the_looks_say_what_changed() -> None:
    rng = random.Random(53)
    few = text_test([*ask(STDLIB, 152, rng), *ask(NUMPY, 8, rng)], 120, ALPHA, np.random.default_rng(1))
    assert max(few.looks, key=lambda name: few.looks[name]) in {"words", "neighbours"}
    assert few.outcome.statistic == max(few.looks.values())
    usual = ask(STDLIB, 160, rng)
    shouted = text_test(
        [*usual[:120], *(text.upper().replace(" ", "_") for text in usual[120:])], 120, ALPHA, np.random.default_rng(1)
    )
    assert shouted.outcome.alarm


def test_a_word_that_only_the_window_holds_weighs_more_than_one_it_holds_as_often() -> None:
    texts = ["alpha beta"] * 6 + ["alpha gamma"] * 3
    held = presence(texts, str.split, 1)
    observed = np.array([[0.0] * 6 + [1.0] * 3])
    other = np.array([[1.0] * 3 + [0.0] * 6])
    assert rising(held, 3)(observed)[0] > rising(held, 3)(other)[0]


def test_a_template_changed_in_the_largest_window_there_is_gives_a_number() -> None:
    """1,000 questions of which all begin with a word that none of 2,000 had: exp of the evidence would be infinite."""
    window, texts = 1_000, 3_000
    held = np.zeros((texts, 2))
    held[-window:, 0] = 1.0
    held[::7, 1] = 1.0
    labellings = np.zeros((2, texts))
    labellings[0, -window:] = 1.0
    labellings[1, :window] = 1.0
    found, by_chance = rising(csr_array(held), window)(labellings)
    assert np.isfinite([found, by_chance]).all()
    assert found > 500 > by_chance


@pytest.mark.parametrize(
    "texts",
    [
        ["the same"] * 40,
        ["!!!", "?", "…"] * 14,
        ["\u200b"] * 20 + ["a"] * 20,
        [f"x{n}" for n in range(40)],
        ["é" * 200_000] * 2 + ["b"] * 38,
    ],
    ids=["equal", "no words", "invisible", "nothing shared", "huge"],
)
def test_odd_texts_break_nothing_and_no_alarm_comes_of_order(texts: list[str]) -> None:
    shuffled = random.Random(59).sample(texts, len(texts))
    outcome = text_test(shuffled, 28, 0.01, np.random.default_rng(0)).outcome
    assert not outcome.alarm
    assert np.isfinite([outcome.statistic, outcome.threshold]).all()
