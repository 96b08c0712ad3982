"""Running the registry's verbs in tests, and a registry in which everything they list has happened once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests_support import (
    alert_episode,
    beat_engine,
    beat_gateway,
    publish_version,
    request_record,
    retraining_request,
    window_score,
)
from tuneloop.cli.main import main
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Check, Feedback, GateReport
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.promotion import Change, promote, set_route

WHO = ("--by", "ada", "--reason", "test")
Verb = Callable[..., tuple[int, str, str]]


def verb_at(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verb:
    monkeypatch.chdir(home)
    monkeypatch.setenv("TUNELOOP_HOME", str(home))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuneloop", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capfd.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, said.out, said.err

    return run


def let_live(registry: Registry, folder: Path) -> Registry:
    """Let everything there is to list happen once."""
    now = registry.clock()
    (folder / "v1").mkdir(parents=True, exist_ok=True)
    (folder / "v1" / "README.md").write_text("# bot\n\nIt answers.\n")
    for number in (1, 2, 3):
        publish_version(registry, folder / f"v{number}", metrics={"perplexity.stdlib": 10.0 / number, "loss": 1.0})
    for number in (1, 2):
        registry.gates.approve("bot", number, by="ada", reason="test")
    promote(registry, "bot", 1, Change("ada", "first"))
    beat_engine(registry, "bot@1", "bot@2", "bot@3")
    set_route(registry, "bot", {2: 1_000, 1: 9_000}, Change("ada", "canary"))
    declare(registry, "bot", 2, RolloutPlan(), Change("ada", "canary"))
    beat_gateway(registry, {"bot": 2})
    check = Check(name="perplexity", verdict="inconclusive", detail="3 rows")
    registry.gates.record(GateReport(model="bot", version=3, champion=1, at=now, checks=(check,)))
    registry.episodes.add_score(window_score(now))
    registry.episodes.open(alert_episode(now))
    registry.retraining.file(retraining_request(now, id="rt_1", episode_id="ep1"), by="monitor")
    registry.traffic.add_requests([request_record(1, now, revision=2)])
    said = Feedback(id="f1", request_id="req-1", at=now, thumb="down", correction="It raises.")
    registry.traffic.add_feedback([said])
    registry.keys.new("team-a", by="test")
    return registry
