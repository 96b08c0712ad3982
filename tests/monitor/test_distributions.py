"""Kolmogorov-Smirnov, PSI and Jensen-Shannon: the usual statistics, and thresholds that hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.distance import jensenshannon
from scipy.stats import binomtest, ks_2samp

from tuneloop.monitor.distributions import Measure, compare
from tuneloop.monitor.verbs import drift
from tuneloop.registry.errors import InvalidInput

ALPHA = 0.02


def normal(n: int, seed: int, shift: float = 0.0) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).normal(shift, 1.0, n).round(1)]  # with ties


def held(reference: Sequence[str | float], window: Sequence[str | float], measure: Measure) -> tuple[float, bool]:
    found = compare("x", reference, window, measure, ALPHA, np.random.default_rng(7))
    return found.statistic, found.alarm


def test_the_statistics_are_those_of_the_books() -> None:
    reference, window = normal(300, 1), normal(90, 2, shift=0.4)
    assert held(reference, window, "ks")[0] == pytest.approx(ks_2samp(reference, window).statistic)
    found = compare("x", reference, window, "js", ALPHA, np.random.default_rng(7))
    was, now = ([part[side] for part in found.bins] for side in ("reference", "window"))
    assert found.statistic == pytest.approx(jensenshannon(was, now, base=2), abs=1e-4)
    assert len(found.bins) == 10
    assert sum(now) == pytest.approx(1, abs=1e-3)
    words = held(["a"] * 60 + ["b"] * 40, ["a"] * 30 + ["b"] * 70, "psi")[0]
    a, b = (60.5 / 101, 30.5 / 101), (40.5 / 101, 70.5 / 101)
    assert words == pytest.approx(sum((now - was) * np.log(now / was) for was, now in (a, b)))


@pytest.mark.parametrize("measure", ["ks", "psi", "js"])
def test_nothing_changed_is_seldom_an_alarm_and_a_shift_is_one(measure: Measure) -> None:
    alarms = sum(held(normal(200, 100 + trial), normal(50, 900 + trial), measure)[1] for trial in range(60))
    assert binomtest(alarms, 60, ALPHA, alternative="greater").pvalue > 1e-4
    assert held(normal(200, 3), normal(50, 4, shift=1.0), measure)[1]


def test_the_usual_threshold_is_told_for_what_it_is() -> None:
    few = compare("x", normal(100, 5), normal(30, 6), "psi", ALPHA, np.random.default_rng(7)).by_rule_of_thumb
    many = compare("x", normal(1_500, 5), normal(700, 6), "psi", 0.5, np.random.default_rng(7)).by_rule_of_thumb
    assert few is not None
    assert many is not None
    assert few > 0.5
    assert many < 0.001


def test_words_have_no_order_and_names_are_no_categories() -> None:
    with pytest.raises(InvalidInput, match="holds words, which have no order for ks; give --by psi or --by js"):
        held(["a", "b"], ["a", "b"], "ks")
    with pytest.raises(InvalidInput, match="holds 250 different words; 200 at most"):
        held([str(number) + "x" for number in range(250)], ["1x"], "js")


@pytest.mark.parametrize("measure", ["ks", "psi", "js"])
def test_numbers_among_words_are_refused_before_any_two_are_taken_for_one(measure: Measure) -> None:
    with pytest.raises(InvalidInput, match=r"holds 4 numbers and 2 words \(like '1'\); write all of them as"):
        held([1_234_567.0, 1_234_568.0, 1.0, "1"], [1.0, "1"], measure)


def test_columns_share_the_budget_of_a_check(tmp_path: Path) -> None:
    def written(name: str, langs: str, n: int) -> str:
        rows = ({"text": f"How do I sort list {i % 7}?", "lang": langs[i % len(langs)]} for i in range(n))
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    files = ["--reference", written("a.jsonl", "eef", 120), "--window", written("b.jsonl", "eff", 60)]
    asked = ["check", *files, "--column", "lang", "--by", "psi"]
    found = json.loads(CliRunner().invoke(drift, [*asked, "--json"], catch_exceptions=False).stdout)
    assert found["verdict"] == "drift"
    assert found["alpha"] == pytest.approx(60 / 10_000 / 2)
    (column,) = found["columns"]
    assert (column["field"], column["alarm"], column["p_value"] <= found["alpha"]) == ("lang", True, True)
    said = CliRunner().invoke(drift, asked, catch_exceptions=False).output
    assert "column     lang: differs (PSI" in said
    assert "           e: 67% of the reference, 33% of the window" in said
    assert "the usual 0.2 would cry wolf in" in said
    missing = CliRunner().invoke(drift, ["check", *files, "--column", "team"])
    assert "--column team needs 'team' on every line" in str(missing.exception)
