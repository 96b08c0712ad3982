"""The classifier and Page-Hinkley's test keep their level on whatever does not change, and see what does."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from monitor.questions import NUMPY, STDLIB, ask, by_task
from tuneloop.monitor.classifier import RIDGE, auc, classifier_test, unseen
from tuneloop.monitor.features import prompt_kernel
from tuneloop.monitor.page_hinkley import ALLOWANCE, page_hinkley
from tuneloop.monitor.verbs import drift

ALPHA = 0.05
SURELY = 1e-3  # of calling a level broken that is kept


def texts(n: int, seed: int, changed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ask(STDLIB, n - changed, rng, by_task) + ask(NUMPY, changed, rng, by_task)


# --- The classifier --------------------------------------------------------------------------------------------------


def test_the_classifier_keeps_its_level_where_texts_stay_what_they_were() -> None:
    rng, trials = np.random.default_rng(3), 60
    alarms = sum(classifier_test(prompt_kernel(texts(70, s)), 50, ALPHA, rng)[0].alarm for s in range(trials))
    assert binomtest(alarms, trials, ALPHA, alternative="greater").pvalue > SURELY


def test_equal_texts_tell_it_nothing_though_they_stand_in_order() -> None:
    rng, trials = np.random.default_rng(5), 40
    kernel = prompt_kernel(["How do I sort a list?"] * 60)
    alarms = sum(classifier_test(kernel, 40, ALPHA, rng)[0].alarm for _ in range(trials))
    assert binomtest(alarms, trials, ALPHA, alternative="greater").pvalue > SURELY


def test_the_classifier_sees_other_questions_and_says_which_they_are() -> None:
    rng = random.Random(7)
    kernel = prompt_kernel(ask(STDLIB, 140, rng) + ask(NUMPY, 20, rng))
    outcome, said = classifier_test(kernel, 120, 0.01, np.random.default_rng(7))
    assert outcome.alarm
    assert 0.6 < outcome.statistic <= 1
    assert set(np.argsort(-said)[:10]) <= set(range(140, 160)), "those that changed are the last twenty"


def test_what_it_says_of_texts_is_what_scikit_learn_says_that_has_not_seen_them() -> None:
    rng = np.random.default_rng(11)
    features = rng.normal(size=(40, 6))
    labels = (rng.random(40) < 0.4).astype(float)
    parts = np.array_split(rng.permutation(40), 4)
    said = unseen(features @ features.T, parts) @ labels
    expected = np.empty(40)
    for part in parts:
        rest = np.setdiff1d(np.arange(40), part)
        expected[part] = Ridge(alpha=RIDGE).fit(features[rest], labels[rest]).predict(features[part])
    assert said == pytest.approx(expected)
    assert auc(said[None, :], labels[None, :])[0] == pytest.approx(roc_auc_score(labels, expected))


# --- Page-Hinkley ----------------------------------------------------------------------------------------------------


def numbers(rng: np.random.Generator, n: int, kind: str) -> NDArray[np.float64]:
    if kind == "few values":
        return rng.integers(0, 3, n).astype(np.float64)
    return rng.standard_t(2, n) if kind == "heavy tails" else rng.exponential(1.0, n)


@pytest.mark.parametrize("kind", ["skewed", "heavy tails", "few values"])
def test_page_hinkley_keeps_its_level_whatever_the_distribution(kind: str) -> None:
    rng, trials = np.random.default_rng(13), 80
    found = [page_hinkley(numbers(rng, 60, kind), numbers(rng, 40, kind), ALPHA, rng) for _ in range(trials)]
    assert binomtest(sum(f.outcome.alarm for f in found), trials, ALPHA, alternative="greater").pvalue > SURELY
    assert all((f.change is None) == (not f.outcome.alarm) for f in found)


@pytest.mark.parametrize(("shift", "direction"), [(1.5, "up"), (-1.5, "down")])
def test_page_hinkley_sees_a_shift_where_it_began(shift: float, direction: str) -> None:
    rng = np.random.default_rng(17)
    begun = []
    for _ in range(20):
        window = rng.normal(size=60)
        window[30:] += shift
        found = page_hinkley(rng.normal(size=200), window, 0.01, rng)
        assert found.change is not None
        assert found.change.direction == direction
        assert found.change.since <= found.change.at
        begun.append(found.change.since)
    assert 26 <= np.median(begun) <= 34


def test_page_hinkleys_statistic_is_the_books() -> None:
    rng = np.random.default_rng(19)
    reference, window = rng.normal(size=30), rng.normal(0.5, 1, size=20)
    pooled = np.concatenate([reference, window])
    pooled = (pooled - pooled.mean()) / pooled.std()
    highest = 0.0
    for sign in (1, -1):
        total, lowest = 0.0, 0.0
        for at in range(30, 50):
            total += sign * (pooled[at] - pooled[: at + 1].mean()) - ALLOWANCE
            lowest = min(lowest, total)
            highest = max(highest, total - lowest)
    assert page_hinkley(reference, window, ALPHA, rng).outcome.statistic == pytest.approx(highest)


def test_numbers_that_are_all_the_same_raise_nothing() -> None:
    assert not page_hinkley(np.ones(20), np.ones(10), ALPHA, np.random.default_rng(1)).outcome.alarm


# --- From the command line -------------------------------------------------------------------------------------------


def test_drift_check_takes_either_by_name(tmp_path: Path) -> None:
    rng = random.Random(23)

    def written(name: str, held: list[str], ms: float) -> str:
        rows = [{"text": text, "ms": rng.gauss(ms, 20)} for text in held]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    usual, same = written("usual.jsonl", texts(120, 29), 200), written("same.jsonl", texts(40, 31), 200)
    other = written("other.jsonl", texts(40, 31, changed=30), 240)
    asked = [
        "check",
        "--reference",
        usual,
        "--texts-by",
        "classifier",
        "--stream",
        "ms",
        "--streams-by",
        "page-hinkley",
    ]
    calm = json.loads(CliRunner().invoke(drift, [*asked, "--window", same, "--json"], catch_exceptions=False).output)
    assert (calm["verdict"], calm["texts_by"], calm["streams"][0]["alarms"]) == ("none", "classifier", [])
    found = CliRunner().invoke(drift, [*asked, "--window", other], catch_exceptions=False).output
    assert "verdict    drift" in found
    assert "(area under a classifier's ROC curve, 0.5 is guessing; 120 against 40 texts)" in found
    assert "number     ms: highest sum of Page-Hinkley's " in found
    assert "up since line " in found
    told = json.loads(CliRunner().invoke(drift, [*asked, "--window", other, "--json"], catch_exceptions=False).output)
    assert 0.5 < told["threshold"] < told["statistic"] <= 1
    assert told["streams"][0]["by"] == "page-hinkley"
