"""The worker from request to gated version, on real parts: what it makes, starts from and judges."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests_support import publish_version
from train.worker.crew import COMMIT, MAIL, filed, run_states, worker
from tuneloop.registry import Registry
from tuneloop.registry.gates.declared import judge_declared
from tuneloop.registry.nouns import (
    Arm,
    Check,
    GateReport,
    RetrainingRequest,
    RetrainingState,
    Version,
)
from tuneloop.registry.policies import GatePolicy
from tuneloop.train.data.near import normal
from tuneloop.train.data.rows import Row
from tuneloop.train.job import kept
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.screen import Screen


def texts(rows: tuple[Row, ...]) -> set[str]:
    return {normal(row.prompt) for row in rows} | {normal(row.answer) for row in rows}


def _learned(registry: Registry, number: int) -> tuple[Row, ...]:
    return Lineage(registry.versions, registry.versions.get("bot", number)).train_rows()


def test_a_request_becomes_one_gated_version(registry: Registry, request_waiting: RetrainingRequest) -> None:
    done = worker(registry).run_once()
    assert done is not None
    version = registry.versions.get("bot", 2)
    assert (version.parent, version.request_id, done.result_version) == (1, request_waiting.id, 2)
    assert version.trained_by == "worker"
    report = registry.gates.latest("bot", 2)
    assert isinstance(report, GateReport)
    assert {check.name for check in report.checks} == {"better on fresh", "not worse on old"}
    expected = RetrainingState.GATED if report.verdict == "pass" else RetrainingState.REJECTED
    assert done.state is expected
    assert report.verdict in done.outcome
    assert {"nll.old", "perplexity.fresh", "bleu.fresh"} <= set(version.metrics)
    assert run_states(registry) == ["FINISHED", "FINISHED"]
    assert worker(registry).run_once() is None
    (ran,) = registry.retraining.runs("bot")
    assert (ran.request_id, ran.worker, ran.devices, ran.end) == (request_waiting.id, "w", 1, done.state)
    assert "the plan for this CPU, 4 steps" in ran.basis
    assert ran.planned_hours is not None
    assert 0 < ran.planned_hours < 1
    assert 0 < ran.hours(registry.clock()) < 1

    lineage = Lineage(registry.versions, version)
    sets, learned = lineage.set_rows(), lineage.train_rows()
    assert set(sets) == {"old", "fresh"}
    assert not texts(learned) & (texts(sets["old"]) | texts(sets["fresh"]))
    everything = "\n".join(row.line() for row in (*learned, *sets["fresh"]))
    assert MAIL not in everything
    assert "Who is <EMAIL_ADDRESS>?" in everything
    validated = Lineage(registry.versions, registry.versions.get("bot", 1)).validation_rows()
    assert lineage.validation_rows() == validated
    assert len(validated) == 4
    assert not texts(learned) & texts(validated)
    assert registry.versions.metric_history(version.run_id, "validation_loss")
    manifest = lineage.manifest()
    assert manifest["fresh_rows"] + len(sets["fresh"]) == 29
    assert manifest["replayed_rows"] == 16
    assert sum(manifest["dropped"].values()) >= 1
    (leakage,) = [one for one in manifest["quality"] if one["check"] == "leakage"]
    assert leakage["rows"] == leakage["dropped"] == 1  # the correction that repeats an evaluation row

    policy = GatePolicy(latency_p95_ms=1_000, leakage="refuse", signed=True)
    declared = {check.name: check.verdict for check in judge_declared(registry, version, policy)}
    assert declared == {"latency p95": "inconclusive", "leakage": "pass", "signed": "pass"}
    first = judge_declared(registry, registry.versions.get("bot", 1), policy)
    assert [check.verdict for check in first if check.name == "leakage"] == ["pass"]


@pytest.mark.parametrize(
    ("verdicts", "state"),
    [
        ({}, RetrainingState.GATED),
        ({"latency p95": "inconclusive"}, RetrainingState.GATED),
        ({"latency p95": "fail"}, RetrainingState.REJECTED),
        ({"latency p95": "inconclusive", "signed": "inconclusive"}, RetrainingState.REJECTED),
        ({"better on fresh": "inconclusive"}, RetrainingState.REJECTED),
    ],
)
def test_a_version_that_lacks_nothing_but_traffic_waits_for_it(
    registry: Registry, request_waiting: RetrainingRequest, verdicts: dict[str, str], state: RetrainingState
) -> None:
    """Nobody can have asked it yet; whoever lets testers have it has it judged again."""
    names = ("better on fresh", "latency p95", "signed")
    checks = [Check.model_validate({"name": n, "verdict": verdicts.get(n, "pass"), "detail": ""}) for n in names]
    publish_version(registry, registry.settings.home / "made", request_id=request_waiting.id, parent=1)
    report = GateReport(model="bot", version=2, champion=1, at=registry.clock(), checks=tuple(checks))
    registry.gates.record(report)
    done = worker(registry).run_once()
    assert done is not None
    assert (done.state, done.result_version) == (state, 2)


def test_a_request_says_that_its_versions_pass_lets_nobody_in_where_the_champion_changed_meanwhile(
    registry: Registry, request_waiting: RetrainingRequest
) -> None:
    publish_version(registry, registry.settings.home / "made", request_id=request_waiting.id, parent=1)
    better = Check(name="better on fresh", verdict="pass", detail="")
    registry.gates.record(GateReport(model="bot", version=2, champion=1, at=registry.clock(), checks=(better,)))
    history = registry.routes.history("bot", limit=1)
    registry.routes.write(
        "bot",
        [Arm(version=3, weight_bp=10_000)],
        by="ada",
        reason="another",
        expected_revision=history[0].revision if history else 0,
    )
    done = worker(registry).run_once()
    assert done is not None
    assert done.state is RetrainingState.GATED
    assert (
        "it may get no share: its gate held it against bot@1, and bot@3 is the champion now; judge it" in done.outcome
    )


@pytest.mark.parametrize("differs", ["", "our code"])
def test_a_retraining_starts_from_its_parents_weights_and_measures_them_only_where_something_differs(
    registry: Registry, request_waiting: RetrainingRequest, monkeypatch: pytest.MonkeyPatch, differs: str
) -> None:
    monkeypatch.setattr(kept, "code_commit", lambda: "another" if differs else COMMIT)
    screen = io.StringIO()
    worker(registry, screen=Screen(screen)).run_once()
    said = [line for line in screen.getvalue().splitlines() if line.startswith("before training")]
    assert [(line.split()[2], "as measured when it was made" in line) for line in said] == [
        ("old", not differs),
        ("fresh", False),
    ]
    first, second = registry.versions.all("bot")[::-1]
    before = Lineage(registry.versions, second).pairs()["old"].champion
    after_first = Lineage(registry.versions, first).pairs()["old"].challenger
    assert (before == after_first) or differs
    assert [row.nll for row in before] == pytest.approx([row.nll for row in after_first], rel=1e-5)


def test_a_retraining_of_a_retraining_keeps_every_evaluation_set(
    registry: Registry, request_waiting: RetrainingRequest
) -> None:
    worker(registry).run_once()
    filed(
        registry,
        base_version=2,
        recipe="bot@2",
        idempotency_key="second",
        window_start=request_waiting.window_start,
        window_end=request_waiting.window_end,
    )
    done = worker(registry).run_once()
    assert done is not None
    third = registry.versions.all("bot")[0]
    # The same corrections once more: those that were measured stay measured, so nothing fresh is left to prove it.
    assert (third.version, third.parent, done.state) == (3, 2, RetrainingState.REJECTED)
    lineage = Lineage(registry.versions, third)
    assert set(lineage.set_rows()) == {"old", "fresh-2"}
    assert "better on fresh inconclusive" in done.outcome
    everything_learned = {row.line() for number in (1, 2) for row in _learned(registry, number)}
    assert {row.line() for row in lineage.train_rows()} <= everything_learned


def test_a_base_that_changed_is_refused(
    registry: Registry, champion: Version, request_waiting: RetrainingRequest, tiny_folder: Path, tmp_path: Path
) -> None:
    kept = registry.settings.home / "bases" / champion.base
    shutil.copytree(tiny_folder, kept)
    (kept / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    done = worker(registry).run_once()
    assert done is not None
    assert done.state is RetrainingState.FAILED
    assert "is not the one bot@1 was trained on" in done.outcome


def test_a_recipe_of_before_a_key_was_refused_is_taken_by_the_worker(
    registry: Registry, champion: Version, recipe_in: Callable[[Path], Path], tmp_path: Path
) -> None:
    recipe = recipe_in(tmp_path / "another")
    text = recipe.read_text().replace("{steps: 3,", "{divergence: {max_rollbacks: 1}, steps: 3,")
    recipe.write_text(text.replace("{model: bot}", "{model: another}"))
    filed(registry, recipe=str(recipe))
    done = worker(registry).run_once()
    assert done is not None
    assert "publishes another, not bot" in done.outcome
