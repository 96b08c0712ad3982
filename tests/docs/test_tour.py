"""docs/tour.md against a registry in which the same things have happened: every table it shows has these columns."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from docs.documents import ROOT, Command, consoles
from tests_support import (
    alert_episode,
    beat_engine,
    beat_gateway,
    publish_version,
    request_record,
    retraining_request,
    window_score,
)
from tuneloop.cli import main as front_door
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Arm, Check, GateReport, Interval, RetrainingState, utc_now

MODEL = "python-helper"
TOUR = ROOT / "docs" / "tour.md"
SHOWN = [command for console in consoles(TOUR) for command in console.commands if command.output]
READS = (
    *("status", "versions", "models", "route show", "route history", "alerts", "alert show", "retraining list"),
    *("retraining show", "gate", "compare", "trace", "requests", "audit", "key list", "drift windows"),
)
READ = [command for command in SHOWN if command.line.removeprefix("tuneloop ").startswith(READS)]


@pytest.fixture
def after_the_loop(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Two versions, the second from a retraining that a drift led to, and in charge; everybody is alive."""
    now = utc_now()
    metrics = {"perplexity.stdlib": 12.1, "bleu.stdlib": 13.3}
    publish_version(registry, tmp_path / "1", model=MODEL, metrics=metrics)
    records = [request_record(number, now - timedelta(hours=1), model=MODEL) for number in range(3)]
    registry.traffic.add_requests(records)
    score = window_score(now, model=MODEL, detail={"window": 1, "mean_run_length": 10_000})
    registry.episodes.add_score(score)
    finding = {
        "window_end": now.isoformat(),
        "detector": "MMD²",
        "n": 25,
        "statistic": 0.2,
        "threshold": 0.1,
        "p_value": 0.001,
        "words": [{"word": "numpy", "reference": 0.0, "window": 0.7}],
        "examples": [{"request_id": "req-1", "question": "What does f1 do?", "weight": 1.0}],
    }
    evidence = {
        "summary": "other questions",
        "since": now.isoformat(),
        "mean_run_length": 10_000,
        "reference": {"n": 50, "from": now.isoformat(), "to": now.isoformat()},
        "signals": {"prompt_drift": finding},
    }
    registry.episodes.open(alert_episode(now, model=MODEL, evidence=evidence, done=("filed",)))
    request = retraining_request(now, id="rt1", model=MODEL, episode_id="ep1")
    registry.retraining.file(request, by="monitor")
    registry.retraining.approve("rt1", by="you", reason="real")
    claimed = registry.retraining.claim("worker", lease_s=60)
    assert claimed is not None
    publish_version(registry, tmp_path / "2", model=MODEL, metrics=metrics, parent=1, request_id="rt1")
    registry.retraining.finish(claimed, RetrainingState.GATED, by="worker", outcome="passes", result_version=2)
    interval = Interval(estimate=-0.2, low=-0.3, high=-0.1)
    checks = (Check(name="better on fresh", verdict="pass", detail="yes", interval=interval),)
    registry.gates.record(GateReport(model=MODEL, version=2, champion=1, at=now, checks=checks))
    for revision, (old, new) in enumerate(((10_000, 0), (9_000, 1_000), (0, 10_000))):
        arms = (Arm(version=2, weight_bp=new), Arm(version=1, weight_bp=old))
        registry.routes.write(MODEL, arms, by="you", reason="tour", expected_revision=revision)
    served = {"revision": 3, "assigned_version": 2, "served_version": 2, "error": "none"}
    registry.traffic.add_requests([request_record(9, now, model=MODEL, **served)])
    registry.keys.new("you", by="test")
    beat_engine(registry, f"{MODEL}@1", f"{MODEL}@2")
    beat_gateway(registry, {MODEL: 3})
    monkeypatch.setenv("TUNELOOP_HOME", str(registry.settings.home))
    return registry


def test_the_tour_shows_what_verbs_print() -> None:
    assert len(READ) >= 8


@pytest.mark.parametrize("command", READ, ids=lambda command: command.place)
def test_every_table_of_the_tour_has_the_columns_it_shows(command: Command, after_the_loop: Registry) -> None:
    line = command.line
    for pattern, here in ((r"\bep_\w+", "ep1"), (r"\brt_\w+", "rt1"), (r"\breq_\w+", "req-9")):
        line = re.sub(pattern, here, line)
    done = CliRunner().invoke(front_door.build(), shlex.split(line, comments=True)[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert landmarks(command.output), "an output that shows nothing recognisable"
    assert landmarks(command.output) <= landmarks(done.output)


def landmarks(output: str) -> set[str]:
    """What stays from run to run: the heads of tables, the kinds of a trace's steps, the labels of an alert."""
    heads = {
        re.sub(r"  +", " | ", line) for line in output.splitlines() if re.fullmatch(r"[A-Z][A-Z ()/]{4,}", _bare(line))
    }
    links = set(
        re.findall(
            r"^ *(?:└─ )?(request|route|version|run|data|retraining request|alert episode|window) ", output, re.M
        )
    )
    labels = set(re.findall(r"^(since|held to|how sure|word|example|done|runbook|next) {2,}", output, re.M))
    words = set(re.findall(r"(?:revision|gateways:|applies)(?= )", output)) if not heads | links | labels else set()
    return heads | links | labels | words


def _bare(line: str) -> str:
    return line.replace("(UTC)", "").replace("(BP)", "").strip()
