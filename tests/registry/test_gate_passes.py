"""A gate's pass lets in as long as what it was judged by stands, the champion and the policy. On both databases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.rolling import GRACE, PLAN, now
from registry.world import CHANGE, Users
from tests_support import Clock, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Refused
from tuneloop.registry.gates.declared import judge_again
from tuneloop.registry.nouns import Check, GateReport, Interval, Version
from tuneloop.registry.policies import GatePolicy, Threshold
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.rollouts.steering import declare, resume
from tuneloop.registry.routes.promotion import promote, set_route
from tuneloop.registry.routes.rolling_back import rollback

BY, REASON = "ada", "test"
SHOWN = Interval(estimate=-0.2, low=-0.3, high=-0.1)
CLOSE = Interval(estimate=0.0, low=-0.04, high=0.04)


@pytest.fixture
def registry_home(published_home: Path) -> Path:
    """Versions 1 and 2 of `bot` are in MLflow before a test begins."""
    return published_home


@pytest.fixture
def three(registries: Registry, users: Users, tmp_path: Path) -> Version:
    """`bot@3`, trained from `bot@1`, the champion, and better than that."""
    made = publish_version(registries, tmp_path / "v3", parent=1, metrics={"bleu.old": 5.0})
    passes(registries, 3, against=1)
    return made


def passes(registry: Registry, version: int, *, against: int, old: Interval = SHOWN) -> None:
    checks = (
        Check(name="better on fresh", verdict="pass", detail="it is", interval=SHOWN),
        Check(name="not worse on old", verdict="pass", detail="it is not", interval=old),
    )
    report = GateReport(model="bot", version=version, champion=against, at=registry.clock(), checks=checks)
    registry.gates.record(report)


def ask(registry: Registry, clock: Clock, policy: GatePolicy) -> None:
    clock.advance(60)
    registry.policies.set("bot", policy, by=BY, reason=REASON)
    clock.advance(60)


def verdicts(report: GateReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def test_a_pass_against_one_champion_says_nothing_of_the_next(
    registries: Registry, clock: Clock, three: Version
) -> None:
    promote(registries, "bot", 2, CHANGE)
    with pytest.raises(Refused, match=r"its gate held it against bot@1, and bot@2 is the champion now; .*--judge"):
        promote(registries, "bot", 3, CHANGE)
    rollback(registries, "bot", GRACE)  # 1 was let in by a person, and 2 keeps what it had been judged
    assert registries.gates.approver("bot", 3) == "gate", "what it was held against is the champion again"
    promote(registries, "bot", 3, CHANGE)
    ask(registries, clock, GatePolicy(signed=True))
    promote(registries, "bot", 2, CHANGE)
    assert rollback(registries, "bot", GRACE).champion == 3, "a champion that was waits for no gate"
    promote(registries, "bot", 2, CHANGE)
    assert judge_again(registries, three).champion == 1, "nor does one that somebody has judged again meanwhile"
    assert rollback(registries, "bot", GRACE).champion == 3


def test_held_against_another_champion_it_passes_only_on_figures_of_both(
    registries: Registry, clock: Clock, three: Version, tmp_path: Path
) -> None:
    promote(registries, "bot", 2, CHANGE)
    report = judge_again(registries, three)
    assert (report.champion, report.verdict) == (2, "inconclusive")
    assert all("bot@2 was not measured on these rows: train again from bot@2" in c.detail for c in report.checks)
    second = registries.versions.get("bot", 2)
    for version, low, high in ((three, 9.0, 11.0), (second, 19.0, 21.0)):
        figures = {"perplexity.old": (low + high) / 2, "perplexity.old.low": low, "perplexity.old.high": high}
        registries.versions.log_metrics(version.run_id, figures)
        data = tmp_path / str(version.version) / "data.json"
        data.parent.mkdir()
        sets = {"old": {"rows": 60, "digest": "d"}, "fresh": {"rows": 20, "digest": version.name}}
        data.write_text(json.dumps({"sets": sets}))
        registries.versions.log_file(version.run_id, data)
    rollback(registries, "bot", GRACE)
    assert verdicts(judge_again(registries, three)) == {"better on fresh": "pass", "not worse on old": "pass"}
    passes(registries, 3, against=1)
    promote(registries, "bot", 2, CHANGE)
    report = judge_again(registries, three)
    assert verdicts(report) == {"better on fresh": "inconclusive", "not worse on old": "pass"}
    assert report.checks[1].detail == (
        "NLL difference -0.6931 nats/token, 95% interval [-0.8473, -0.5465] over 60 rows: below 0"
    )


def test_a_pass_counts_by_the_policy_it_was_judged_by(registries: Registry, clock: Clock, three: Version) -> None:
    ask(registries, clock, GatePolicy(metrics={"bleu.old": Threshold(min=10)}))
    with pytest.raises(Refused, match=r"pass by a gate policy that has been revised since; judge it again: `tuneloop"):
        set_route(registries, "bot", {3: 100, 1: 9_900}, CHANGE)
    assert verdicts(judge_again(registries, three))["bleu.old"] == "fail"
    ask(registries, clock, GatePolicy(metrics={"bleu.old": Threshold(min=5)}, approver="other than the trainer"))
    assert judge_again(registries, three).verdict == "pass"
    assert registries.gates.approver("bot", 3) == "gate"
    ask(registries, clock, GatePolicy(metrics={"bleu.old": Threshold(min=5)}))
    assert registries.gates.approver("bot", 3) == "gate", "whose approval counts judges no version"
    ask(registries, clock, GatePolicy())
    assert registries.gates.approver("bot", 3) is None
    assert verdicts(judge_again(registries, three)).keys() == {"better on fresh", "not worse on old"}


def test_margins_and_rows_are_judged_again_by_the_kept_intervals(registry: Registry, tmp_path: Path) -> None:
    made = registry.versions.get("bot", 2)
    sets = {name: {"rows": 60, "digest": name} for name in ("fresh", "old")}
    (tmp_path / "data.json").write_text(json.dumps({"sets": sets}))
    registry.versions.log_file(made.run_id, tmp_path / "data.json")
    for policy, verdict in (
        (GatePolicy(), "pass"),
        (GatePolicy(margin=0.05), "pass"),
        (GatePolicy(margin=0.01), "inconclusive"),
        (GatePolicy(margins={"old": 0.03}), "inconclusive"),
        (GatePolicy(min_rows=60), "pass"),
        (GatePolicy(min_rows=61), "inconclusive"),
        (GatePolicy(margins={"safety": 0.1}), "inconclusive"),
    ):
        registry.policies.set("bot", GatePolicy(), by=BY, reason=REASON)
        passes(registry, 2, against=1, old=CLOSE)
        registry.policies.set("bot", policy, by=BY, reason=REASON)
        report = judge_again(registry, made)
        assert report.verdict == verdict, policy
        assert judge_again(registry, made).checks == report.checks
        registry.policies.set("bot", GatePolicy(margin=0.05, min_rows=60), by=BY, reason=REASON)
        assert judge_again(registry, made).verdict == "pass", "nothing of what is kept is lost by judging again"


def test_a_rollout_that_was_let_in_goes_on_and_is_asked_anew_when_a_person_resumes_it(
    registries: Registry, clock: Clock, three: Version, tmp_path: Path
) -> None:
    declare(registries, "bot", 3, PLAN, CHANGE)
    ask(registries, clock, GatePolicy(signed=True))
    assert registries.gates.approver("bot", 3) == "gate"
    controller = Controller(registries)
    controller.turn()
    assert registries.routes.current("bot").split == {3: 1_000, 1: 9_000}
    set_route(registries, "bot", {3: 300, 1: 9_700}, GRACE)  # less needs no approval
    controller.turn()
    assert now(registries).state is RolloutState.PAUSED
    with pytest.raises(Refused, match="judge it again"):
        resume(registries, "bot", GRACE)
    judge_again(registries, three)
    assert resume(registries, "bot", GRACE).state is RolloutState.RUNNING
    promote(registries, "bot", 3, GRACE)
    assert registries.routes.current("bot").champion == 3
