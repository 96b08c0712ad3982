"""The worker from request to gated version, on real parts: what it learns from, judges and may spend."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests_support import publish_version
from train.worker.crew import MAIL, filed, run_states, worker
from tuneloop.registry import Registry
from tuneloop.registry.gates.declared import judge_declared
from tuneloop.registry.nouns import (
    Arm,
    Check,
    Feedback,
    GateReport,
    RetrainingRequest,
    RetrainingRun,
    RetrainingState,
    Version,
)
from tuneloop.registry.policies import GatePolicy, RetrainingPolicy
from tuneloop.registry.retraining.history import history_of
from tuneloop.train.base import base_of
from tuneloop.train.data.near import normal
from tuneloop.train.data.rows import Row
from tuneloop.train.job import kept, run
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe.run import EarlyStopping
from tuneloop.train.retraining.estimate import Here, estimate
from tuneloop.train.retraining.worker import Worker
from tuneloop.train.screen import Screen
from tuneloop.train.settings import WorkerSettings
from tuneloop.train.stopping import StopFlag


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


@pytest.mark.parametrize("differs", ["", "torch"])
def test_a_retraining_starts_from_its_parents_weights_and_measures_them_only_where_something_differs(
    registry: Registry, request_waiting: RetrainingRequest, monkeypatch: pytest.MonkeyPatch, differs: str
) -> None:
    changed = {differs: "another"} if differs else {}
    monkeypatch.setattr(run, "conditions", lambda *given: kept.conditions(*given) | changed)
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


def test_above_a_budget_nothing_is_trained_and_a_person_may_go_beyond_it(
    registry: Registry, request_waiting: RetrainingRequest
) -> None:
    policy = RetrainingPolicy(cost_usd_per_month=Decimal("0.01"))
    registry.policies.set("bot", policy, by="ada", reason="a cent a month")
    screen = io.StringIO()
    held = worker(registry, screen=Screen(screen)).run_once()
    assert held is not None
    assert (held.state, held.attempts) == (RetrainingState.PROPOSED, 0)
    assert "an hour's price is not known: worker.usd_per_hour says it" in held.held
    assert f"retraining {held.id} is held until a person approves it" in screen.getvalue()
    assert run_states(registry) == ["FINISHED"]
    assert registry.retraining.runs("bot") == []
    registry.retraining.approve(held.id, by="ada", reason="this one is worth it")
    settings = WorkerSettings(id="w", usd_per_hour=Decimal(3600))
    dear = Worker(registry, settings, threads=0, screen=Screen(io.StringIO()), stop=StopFlag())
    done = dear.run_once()
    assert done is not None
    assert (done.result_version, done.budget_waived_by) == (2, "ada")
    (took,) = history_of([done], registry.retraining.runs("bot"), registry.clock()).requests
    assert took.cost_usd is not None
    assert took.cost_usd == pytest.approx(Decimal(repr(took.hours * 3600)), abs=Decimal("0.01"))


def test_what_the_plan_cannot_know_is_what_earlier_runs_took_or_is_not_known(
    registry: Registry, champion: Version
) -> None:
    lineage = Lineage(registry.versions, champion)
    recipe, rows = lineage.recipe(), lineage.train_rows()
    base = base_of(champion, recipe.recipe, registry.settings.home / "bases", relative_to=recipe.folder)
    here = Here(threads=0, has_gpu=True, prices=None, usd_per_hour=Decimal(2))  # a GPU that no table lists
    unknown = estimate(recipe.recipe, base, rows, [], here)
    assert (unknown.hours, unknown.usd_per_hour) == (None, Decimal(2))
    assert "no device 'this GPU'" in unknown.basis
    assert "no earlier run has made a version" in unknown.basis
    now = registry.clock()
    run = RetrainingRun(
        request_id="rt_0",
        fencing_token=1,
        model="bot",
        worker="w",
        started_at=now - timedelta(hours=3),
        ended_at=now,
        end="gated",
        devices=1,
    )
    measured = estimate(recipe.recipe, base, rows, [run], here)
    assert measured.hours == pytest.approx(3.0)
    assert "the median of earlier runs counts" in measured.basis


def test_a_window_without_corrections_fails_with_the_reason_and_the_worker_lives(
    registry: Registry, champion: Version
) -> None:
    filed(registry)
    crew = worker(registry)
    done = crew.run_once()
    assert done is not None
    assert done.state is RetrainingState.FAILED
    assert "no correction" in done.outcome
    assert crew.run_once() is None
    assert [version.version for version in registry.versions.all("bot")] == [1]


@pytest.mark.parametrize("action", ["drop", "refuse"])
def test_corrections_are_judged_by_the_recipes_quality_section(
    registry: Registry,
    request_waiting: RetrainingRequest,
    tmp_path: Path,
    recipe_in: Callable[[Path], Path],
    action: str,
) -> None:
    recipe = recipe_in(tmp_path / "strict")
    quality = f"quality: {{long: {action}, max_words: 30, min_words: 2}}"
    recipe.write_text(recipe.read_text().replace("data: {", "data: {" + quality + ", "))
    registry.retraining.cancel(request_waiting.id, by="test", reason="another recipe")
    window = {name: getattr(request_waiting, name) for name in ("window_start", "window_end")}
    filed(registry, recipe=str(recipe), idempotency_key="strict", **window)
    long = " ".join(["It is a long answer that nobody would want to read to its end."] * 3)
    later = request_waiting.window_end + timedelta(minutes=1)
    registry.traffic.add_feedback([Feedback(id="fb-long", request_id="req-3", at=later, thumb="down", correction=long)])
    screen = io.StringIO()
    done = worker(registry, screen=Screen(screen)).run_once()
    assert done is not None
    if action == "refuse":
        assert done.state is RetrainingState.FAILED
        assert "users' corrections: long: answers over max_words: 1" in done.outcome
        assert "request req-3" in done.outcome
        return
    assert done.result_version == 2
    lineage = Lineage(registry.versions, registry.versions.get("bot", 2))
    assert lineage.manifest()["dropped"]["long"] == 1
    assert not any(long in row.answer for row in lineage.train_rows())


def test_early_stopping_without_rows_to_stop_by_is_said(
    registry: Registry, champion: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version of a release that kept no validation rows, or whose recipe had none."""
    recipe = Lineage(registry.versions, champion).recipe().recipe
    stopping = recipe.model_copy(update={"run": recipe.run.model_copy(update={"early_stopping": EarlyStopping()})})
    screen = io.StringIO()
    crew = worker(registry, screen=Screen(screen))
    assert len(crew._validation(champion, stopping)) == 4
    monkeypatch.setattr(Lineage, "manifest", lambda _self: {})
    assert crew._validation(champion, recipe) == ()
    assert screen.getvalue() == ""
    assert crew._validation(champion, stopping) == ()
    assert "run.early_stopping stops nothing: bot@1 keeps no validation rows" in screen.getvalue()


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
