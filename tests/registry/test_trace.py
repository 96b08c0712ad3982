"""From an answer back to what made it: the whole chain of a retrained version, the short one of a first version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest
import sqlalchemy as sa

from tests_support import alert_episode, publish_version, request_record, retraining_request, window_score
from tuneloop.registry import Registry
from tuneloop.registry.errors import NotFound, Unavailable
from tuneloop.registry.nouns import Arm, Feedback
from tuneloop.registry.trace import trace


@pytest.fixture
def looped(registry: Registry, tmp_path: Path) -> Registry:
    """`bot@1` drifted, an episode asked for a retraining, which made `bot@2`; a request was served by each."""
    now = registry.clock()
    publish_version(registry, tmp_path / "v1")
    registry.routes.write("bot", [Arm(version=1, weight_bp=10_000)], by="ada", reason="first", expected_revision=0)
    registry.episodes.add_score(window_score(now))
    episode = registry.episodes.open(alert_episode(now))
    request = registry.retraining.file(retraining_request(now, id="rt_1", episode_id=episode.id), by="monitor")
    made = publish_version(registry, tmp_path / "v2", request_id=request.id, parent=1)
    (tmp_path / "data.json").write_text(json.dumps({"rows": 10, "fresh": 4}))
    registry.versions.log_file(made.run_id, tmp_path / "data.json")
    registry.versions.log_metrics(made.run_id, {"loss": 1.25})
    arms = [Arm(version=1, weight_bp=0), Arm(version=2, weight_bp=10_000)]
    registry.routes.write("bot", arms, by="ada", reason="better", expected_revision=1)
    registry.traffic.add_requests(
        [
            request_record(1, now),
            request_record(2, now, revision=2, assigned_version=2, served_version=2),
            request_record(3, now, revision=2, served_version=None, engine=None, status=503, error="no engine"),
            request_record(4, now, revision=99),
        ]
    )
    registry.traffic.add_feedback([Feedback(id="fb", request_id="req-2", at=now, thumb="down", correction="It does.")])
    return registry


def test_the_chain_of_a_retrained_version_ends_at_the_window_that_raised_the_alert(looped: Registry) -> None:
    steps = trace(looped, "req-2")
    assert [(step.kind, step.id) for step in steps] == [
        ("request", "req-2"),
        ("route", "bot revision 2"),
        ("version", "bot@2"),
        ("run", looped.versions.get("bot", 2).run_id),
        ("data", "sha256:data"),
        ("retraining request", "rt_1"),
        ("alert episode", "ep1"),
        ("window", "w1"),
    ]
    by_kind = {step.kind: step for step in steps}
    assert by_kind["request"].summary.endswith("served by bot@2 on e1; feedback: thumb down, correction")
    assert by_kind["request"].detail["feedback"][0]["correction"] is True, "that there is one, not what it says"
    assert by_kind["route"].summary == "1=0 2=10000, by ada: better"
    assert by_kind["version"].summary.endswith("parent bot@1")
    assert by_kind["run"].detail == {"loss": 1.25}
    assert by_kind["data"].detail == {"rows": 10, "fresh": 4}
    assert "prompt_drift 0.2 over 0.1" in by_kind["window"].summary


def test_what_was_said_is_not_in_the_trace(looped: Registry) -> None:
    assert not {"messages", "answer"} & trace(looped, "req-2")[0].detail.keys()


def test_a_first_version_has_no_retraining_behind_it(looped: Registry) -> None:
    assert [step.kind for step in trace(looped, "req-1")] == ["request", "route", "version", "run", "data"]


def test_a_request_nothing_served_ends_at_its_route(looped: Registry) -> None:
    steps = trace(looped, "req-3")
    assert [step.kind for step in steps] == ["request", "route"]
    assert steps[0].summary.endswith("503, 103 ms, not served")


def test_a_revision_this_database_does_not_have_does_not_hide_the_rest(looped: Registry) -> None:
    steps = trace(looped, "req-4")
    assert [step.kind for step in steps] == ["request", "route", "version", "run", "data"]
    assert steps[1].summary.startswith("not known: bot has no revision 99")


@pytest.mark.parametrize(
    ("damage", "last"),
    [
        ("DELETE FROM retraining", ("retraining request", "rt_1", "not known: no retraining request 'rt_1'")),
        ("UPDATE retraining SET state = 'odd'", ("retraining request", "rt_1", "cannot be read")),
        ("DELETE FROM episodes", ("alert episode", "ep1", "not known: ")),
        ("UPDATE episodes SET severity = 'odd'", ("alert episode", "ep1", "cannot be read")),
        ("DELETE FROM window_scores", ("window", "w1", "not known: no window score 'w1'")),
        ("UPDATE window_scores SET verdict = 'odd'", ("window", "w1", "cannot be read")),
        ("UPDATE routes SET arms = '5'", ("window", "w1", "over 0.1")),
    ],
)
def test_a_link_that_is_gone_or_damaged_does_not_hide_those_before_it(
    looped: Registry, damage: str, last: tuple[str, str, str]
) -> None:
    with looped.database.writing() as connection:
        connection.execute(sa.text(damage))
    steps = trace(looped, "req-2")
    assert [step.kind for step in steps][:5] == ["request", "route", "version", "run", "data"]
    kind, name, said = last
    assert (steps[-1].kind, steps[-1].id, said in steps[-1].summary) == (kind, name, True)


def _away(*_asked: object) -> NoReturn:
    raise Unavailable("MLflow at http://mlflow does not answer")


def test_without_mlflow_the_request_and_its_route_are_told_and_the_version_is_said_not_to_be_known(
    looped: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looped.versions, "get", _away)
    steps = trace(looped, "req-2")
    assert [(step.kind, step.id) for step in steps] == [
        ("request", "req-2"),
        ("route", "bot revision 2"),
        ("version", "bot@2"),
    ]
    assert steps[-1].summary == "not known: MLflow at http://mlflow does not answer"


def test_an_mlflow_that_goes_away_meanwhile_does_not_hide_the_rest(
    looped: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looped.versions, "run_metrics", _away)
    monkeypatch.setattr(looped.versions, "fetched_file", _away)
    by_kind = {step.kind: step for step in trace(looped, "req-2")}
    assert {"version", "run", "data", "retraining request", "alert episode", "window"} <= set(by_kind)
    for kind in ("run", "data"):
        assert by_kind[kind].summary.endswith("; the rest is not known: MLflow at http://mlflow does not answer")
        assert by_kind[kind].detail == {}


def test_an_unknown_request_is_said_to_be_one(looped: Registry) -> None:
    with pytest.raises(NotFound, match="no request 'req-9' is on record"):
        trace(looped, "req-9")
