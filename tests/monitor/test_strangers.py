"""A few texts that are like none of the others are seen, though they have nothing in common but that."""

from __future__ import annotations

import random

import numpy as np
import pytest

from monitor.questions import STDLIB, ask
from tuneloop.monitor.detectors import Statistic, strongest_test
from tuneloop.monitor.features import prompt_kernel
from tuneloop.monitor.strangers import gathering, strangeness
from tuneloop.monitor.textdrift import text_test

ALPHA = 0.01  # what `drift check` tests at by default
ODD = (
    "Wann fährt der letzte Zug nach Bremen?", "two eggs, flour and a pinch of salt", "SELECT 1;", "asdf jkl; qwerty",
    "Is my blood pressure too high at 150/95?", "Übersetze das bitte ins Polnische", "who won the cup final yesterday",
    "my landlord keeps the deposit",
)  # fmt: skip


def test_a_few_texts_that_share_nothing_are_seen_by_their_strangeness_alone() -> None:
    usual = ask(STDLIB, 152, random.Random(3))
    found = text_test([*usual, *ODD], 120, ALPHA, np.random.default_rng(0))
    others = [value for name, value in found.looks.items() if name != "strangers"]
    assert found.outcome.alarm
    assert found.looks["strangers"] > found.outcome.threshold > max(others)


def test_what_the_others_explain_is_less_strange() -> None:
    usual = ask(STDLIB, 100, random.Random(5))
    texts = [*usual, *ODD, ODD[0]]
    strange = strangeness(prompt_kernel(texts))
    assert np.median(strange[100:108]) > np.quantile(strange[:100], 0.9)
    assert strange[100] == strange[108] < strange[101:108].min(), "one that has its like is less of a stranger"


def test_equal_texts_are_equally_strange_and_count_alike() -> None:
    strange = strangeness(prompt_kernel(["the same"] * 12))
    assert (strange == 0).all()
    few = gathering(np.array([0.0, 0.0, 0.0, 0.0, 7.0]))(np.eye(5))
    assert few[:4] == pytest.approx(np.full(4, few[0]))
    assert few[4] > few[0]


def test_a_statistic_with_a_heavy_tail_does_not_raise_the_threshold_of_another() -> None:
    """By plain standard deviations the square's threshold is near 4, and what the sum shows at 0.1 % is lost at 1 %."""
    rng = np.random.default_rng(7)
    noise, shown = rng.standard_normal(200), rng.standard_normal(200)
    shown[:160] -= shown[:160].mean()
    shown[160:] -= shown[160:].mean() - 0.57 * shown.std()  # 3.2 standard deviations of such a sum
    looks: dict[str, Statistic] = {
        "square": lambda rows: np.square(rows @ (noise - noise.mean())),
        "sum": shown.__rmatmul__,
    }
    outcome, values = strongest_test(looks, 200, 40, alpha=0.01, rng=rng)
    assert outcome.alarm
    assert outcome.statistic == values["sum"] < 4.0
