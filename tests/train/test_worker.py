"""The worker from request to gated version, on real parts: what it learns from, and what survives its death."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import mlflow
import pytest

from tests_support import publish_version, request_record, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.gates.declared import judge_declared
from tuneloop.registry.nouns import (
    Check,
    Feedback,
    GateReport,
    Message,
    RetrainingRequest,
    RetrainingRun,
    RetrainingState,
    Version,
)
from tuneloop.registry.policies import GatePolicy, RetrainingPolicy
from tuneloop.registry.retraining.history import history_of
from tuneloop.registry.settings import RegistrySettings
from tuneloop.train.base import base_of
from tuneloop.train.data.near import normal
from tuneloop.train.data.rows import Row
from tuneloop.train.job import kept, run
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import run_job
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe import load_recipe
from tuneloop.train.retraining.estimate import Here, estimate
from tuneloop.train.retraining.worker import Worker
from tuneloop.train.screen import Screen
from tuneloop.train.settings import WorkerSettings
from tuneloop.train.stopping import StopFlag

Rows = Callable[[int, int], list[dict[str, str]]]
MAIL = "ann.example@python.org"


@pytest.fixture(scope="module")
def trained_home(
    tmp_path_factory: pytest.TempPathFactory, recipe_in: Callable[[Path], Path], empty_state: Path
) -> Path:
    """A state folder in which version 1 of `bot` was trained for real, once; each test works on a copy."""
    folder = tmp_path_factory.mktemp("trained")
    with Registry.open(RegistrySettings(home=shutil.copytree(empty_state, folder / "home"))) as registry:
        job = job_from_recipe(load_recipe(recipe_in(folder)), registry.settings.home)
        run_job(job, registry, screen=Screen(io.StringIO()), stop=StopFlag())
    return folder / "home"


@pytest.fixture
def registry_home(tmp_path: Path, trained_home: Path) -> Path:
    return Path(shutil.copytree(trained_home, tmp_path / "home"))


@pytest.fixture
def champion(registry: Registry) -> Version:
    return registry.versions.get("bot", 1)


@pytest.fixture
def request_waiting(registry: Registry, champion: Version, make_rows: Rows) -> RetrainingRequest:
    """An approved request over a window with 30 corrections: one repeats an evaluation row, one holds an address."""
    now = registry.clock()
    asked = [*make_rows(100, 28), make_rows(60, 1)[0], {"instruction": f"Who is {MAIL}?", "output": f"Ask {MAIL}."}]
    records = [
        request_record(n, now + timedelta(seconds=n), messages=(Message(role="user", content=row["instruction"]),))
        for n, row in enumerate(asked)
    ]
    registry.traffic.add_requests(records)
    registry.traffic.add_feedback(
        [
            Feedback(id=f"fb-{n}", request_id=f"req-{n}", at=record.at, thumb="down", correction=row["output"])
            for n, (row, record) in enumerate(zip(asked, records, strict=True))
        ]
    )
    return filed(registry, window_start=records[0].at, window_end=records[-1].at)


def filed(registry: Registry, **changes: object) -> RetrainingRequest:
    request = retraining_request(registry.clock(), **({"recipe": "bot@1"} | changes))
    registry.retraining.file(request, by="monitor")
    return registry.retraining.approve(request.id, by="test", reason="drift is real")


def worker(registry: Registry, lease_s: float = 60.0, screen: Screen | None = None) -> Worker:
    settings = WorkerSettings(id="w", poll_s=0.1, lease_s=lease_s)
    return Worker(registry, settings, threads=0, screen=screen or Screen(), stop=StopFlag())


def run_states(registry: Registry) -> list[str]:
    """The states of all MLflow runs of `bot`, the oldest first."""
    client = mlflow.MlflowClient(registry.settings.mlflow)
    experiment = client.get_experiment_by_name("bot")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run.info.status for run in runs]


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


class _Dies(Worker):
    """A worker that is gone right after publishing, before it could judge or finish."""

    def _report(self, version: Version, request: RetrainingRequest) -> GateReport:
        raise KeyboardInterrupt(f"{version.name} is published, {request.id} is not finished")


def test_death_after_publishing_leads_to_one_version_judged_by_the_next_worker(
    registry: Registry, request_waiting: RetrainingRequest
) -> None:
    dying = _Dies(
        registry,
        WorkerSettings(id="dying", lease_s=1.0),
        threads=0,
        screen=Screen(io.StringIO()),
        stop=StopFlag(),
    )
    with pytest.raises(KeyboardInterrupt):
        dying.run_once()
    assert registry.retraining.get(request_waiting.id).state is RetrainingState.RUNNING
    time.sleep(1.2)  # the dead worker's lease runs out on the real clock
    done = worker(registry).run_once()
    assert done is not None
    assert done.state in {RetrainingState.GATED, RetrainingState.REJECTED}
    assert (done.attempts, done.result_version) == (2, 2)
    assert [version.version for version in registry.versions.all("bot")] == [2, 1]
    assert registry.gates.latest("bot", 2) is not None


def test_a_lost_lease_stops_the_run_and_publishes_nothing(
    registry: Registry, champion: Version, request_waiting: RetrainingRequest, tiny_recipe: Path
) -> None:
    long = tiny_recipe.with_name("long.yaml")
    long.write_text(tiny_recipe.read_text().replace("retrain: {steps: 4", "retrain: {steps: 100000"))
    registry.retraining.cancel(request_waiting.id, by="test", reason="make room")
    window = {"window_start": request_waiting.window_start, "window_end": request_waiting.window_end}
    request = filed(registry, idempotency_key="long", recipe=str(long), **window)
    states: list[RetrainingState] = []

    def work() -> None:
        done = worker(registry, lease_s=1.0).run_once()
        assert done is not None
        states.append(done.state)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for(lambda: len(run_states(registry)) == 2, 120)
    registry.retraining.cancel(request.id, by="test", reason="changed my mind")
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert states == [RetrainingState.CANCELLED]
    assert run_states(registry) == ["FINISHED", "KILLED"]
    assert [version.version for version in registry.versions.all("bot")] == [1]


@pytest.fixture
def worker_process(registry_home: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        code = "from tuneloop.train.verbs import worker; worker(['--once'])"
        environment = os.environ | {
            "TUNELOOP_HOME": str(registry_home),
            "TUNELOOP_WORKER_LEASE_S": "2",
            "TUNELOOP_TRAIN_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_kill_9_in_the_middle_of_training_costs_nothing_but_time(
    registry_home: Path,
    tiny_recipe: Path,
    request_waiting: RetrainingRequest,
    registry: Registry,
    worker_process: Callable[[], subprocess.Popen[str]],
) -> None:
    long = tiny_recipe.with_name("long.yaml")
    long.write_text(tiny_recipe.read_text().replace("retrain: {steps: 4", "retrain: {steps: 400"))
    registry.retraining.cancel(request_waiting.id, by="test", reason="make room")
    window = {"window_start": request_waiting.window_start, "window_end": request_waiting.window_end}
    request = filed(registry, idempotency_key="killed", recipe=str(long), **window)
    first = worker_process()
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("step "):
            break
    first.send_signal(signal.SIGKILL)
    assert first.wait(timeout=10) == -signal.SIGKILL
    assert [version.version for version in registry.versions.all("bot")] == [1]
    long.write_text(tiny_recipe.read_text())
    time.sleep(2.2)  # the dead worker's lease runs out on the real clock
    done = worker(registry).run_once()
    assert done is not None
    assert (done.id, done.attempts, done.result_version) == (request.id, 2, 2)
    assert done.state in {RetrainingState.GATED, RetrainingState.REJECTED}
    assert [version.version for version in registry.versions.all("bot")] == [2, 1]
    assert registry.versions.for_request(request.id) == registry.versions.get("bot", 2)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.2)
