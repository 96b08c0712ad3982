"""The gate passes only on evidence: better on the fresh rows, not worse on the old, enough rows to tell."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from tuneloop.registry.nouns import GateReport
from tuneloop.registry.policies import GatePolicy
from tuneloop.train.evaluation.judge import Pair, Rules, judge
from tuneloop.train.evaluation.statistics import RowScore
from tuneloop.train.recipe import RetrainSection

RULES = Rules(margin=0.02, min_rows=10)


def pair(shift: float, noise: float = 0.05, n: int = 60) -> Pair:
    """Champion and challenger whose NLL per token differs by `shift` on average."""
    rng = np.random.default_rng(7)
    gaps = rng.normal(0.0, 1.0, n)
    gaps = (gaps - gaps.mean()) / gaps.std() * noise + shift
    champion = [RowScore(30.0, 10)] * n
    return Pair(champion, [RowScore(30.0 + 10 * float(gap), 10) for gap in gaps])


AT = datetime(2026, 11, 1, tzinfo=UTC)


def judged(rules: Rules = RULES, **sets: Pair) -> GateReport:
    return judge(sets, rules, model="bot", version=2, champion=1, at=AT)


def verdicts(report: GateReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def test_better_on_fresh_and_unchanged_on_the_old_passes() -> None:
    report = judged(fresh=pair(-0.3), old=pair(0.0, noise=0.01))
    assert verdicts(report) == {"better on fresh": "pass", "not worse on old": "pass"}
    assert report.verdict == "pass"
    assert all(check.interval is not None for check in report.checks)


@pytest.mark.parametrize(
    ("fresh", "old", "expected"),
    [
        (pair(0.3), pair(0.0, 0.01), ("fail", "pass")),
        (pair(0.0), pair(0.0, 0.01), ("inconclusive", "pass")),
        (pair(-0.3), pair(0.3), ("pass", "fail")),
        (pair(-0.3), pair(0.02, 0.2), ("pass", "inconclusive")),
        (pair(-0.3), pair(-0.3), ("pass", "pass")),
        (pair(-0.3), pair(0.01, 0.01), ("pass", "pass")),
    ],
)
def test_each_check_has_three_verdicts(fresh: Pair, old: Pair, expected: tuple[str, str]) -> None:
    report = judged(fresh=fresh, old=old)
    assert tuple(check.verdict for check in report.checks) == expected
    worst = "fail" if "fail" in expected else "inconclusive" if "inconclusive" in expected else "pass"
    assert report.verdict == worst


def test_the_models_gate_policy_goes_before_the_recipe() -> None:
    retrain = RetrainSection(margin=0.02, min_rows=10)
    assert Rules.of(retrain, GatePolicy()) == RULES
    policy = GatePolicy(margin=0.1, min_rows=70, margins={"old": 0.5})
    rules = Rules.of(retrain, policy)
    assert (rules.margin, rules.min_rows) == (0.1, 70)
    report = judged(rules, fresh=pair(-0.3, n=80), old=pair(0.3, n=80))
    assert verdicts(report) == {"better on fresh": "pass", "not worse on old": "pass"}
    missing = judged(Rules(0.02, 10, margins={"safety": 0.01}), fresh=pair(-0.3))
    assert verdicts(missing) == {"better on fresh": "pass", "not worse on safety": "inconclusive"}


def test_no_data_is_inconclusive_never_a_pass() -> None:
    assert judged().verdict == "inconclusive"
    assert judged(old=pair(-0.3)).verdict == "inconclusive"
    report = judged(fresh=pair(-0.3, n=9), old=pair(-0.3))
    assert verdicts(report) == {"better on fresh": "inconclusive", "not worse on old": "pass"}
    assert "9 rows, at least 10" in report.checks[0].detail
