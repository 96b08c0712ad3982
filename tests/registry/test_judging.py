"""What a rollout is judged on, read from both databases: which traffic counts, and what a look costs."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from tests_support import Clock, request_record, statements, window_score
from tuneloop.registry import Registry
from tuneloop.registry.errors import Refused, Unreadable
from tuneloop.registry.guard_policy import GuardPolicy, OutputGuards
from tuneloop.registry.nouns import Arm, Feedback, Route
from tuneloop.registry.rollouts.canary import Limits
from tuneloop.registry.rollouts.judging import Trial, judgement, trial_of

TEXT = ("messages", "answer", "guards", "comment", "label")


def share(registry: Registry, share_bp: int, *, version: int = 2) -> Route:
    """A revision that gives a version so much beside version 1, at a time of its own."""
    newest = max((route.revision for route in registry.routes.history("bot", limit=1)), default=0)
    arms = [Arm(version=version, weight_bp=share_bp), Arm(version=1, weight_bp=10_000 - share_bp)]
    return registry.routes.write("bot", arms, by="ada", reason="r", expected_revision=newest)


def test_a_look_reads_no_text_and_as_many_statements_whatever_the_traffic(registries: Registry, clock: Clock) -> None:
    route = share(registries, 5_000)
    trial = trial_of(registries, "bot", 2)
    clock.advance(1)
    now = clock()
    # Of every ten: version 1 gets the even ones, of which it fails none; of version 2's the last fails, and another
    # was spoilt by its client. Everybody likes version 1 at 0.25 and later, with a thumb, version 2.
    records = [
        request_record(
            number,
            now,
            revision=route.revision,
            assigned_version=1 + number % 2,
            served_version=1 + number % 2,
            status={9: 503, 7: 422}.get(number % 10, 200),
        )
        for number in range(1_200)
    ]
    said = [Feedback(id=f"a{r.id}", request_id=r.id, at=now, score=0.25, api_key=r.api_key) for r in records]
    said += [
        Feedback(id=f"b{r.id}", request_id=r.id, at=now, thumb="up", comment="good", api_key=r.api_key)
        for r in records
        if r.assigned_version == 2
    ]
    clock.advance(1)
    # What another key says of them does not count, nor what came before the share.
    said += [Feedback(id=f"c{r.id}", request_id=r.id, at=clock(), score=0.0, api_key="another") for r in records]
    before = request_record(5_000, now - timedelta(days=1), assigned_version=2, served_version=2, revision=1)
    registries.traffic.add_requests([*records, before])
    registries.traffic.add_feedback(said)
    with statements(registries) as asked:
        report = judgement(registries, "bot", 2, Limits(), trial)
    about = [statement for statement in asked if "requests" in statement]
    assert len(about) == 2
    assert [word for word in TEXT for statement in about if word in statement] == []
    samples, errors, _, feedback = report.checks
    assert samples.detail == "360 answered on this step, at least 30 asked for"
    assert errors.detail == "120 of 480 failed, champion 0 of 600"
    assert feedback.detail.startswith("score +0.750")
    assert feedback.detail.endswith("360 scores against 600, margin 0.1")


def test_finds_of_the_guards_in_answers_and_what_the_monitor_says_are_judged_where_there_are_any(
    registries: Registry, clock: Clock
) -> None:
    route = share(registries, 5_000)
    clock.advance(1)
    guards = {"output.secrets": "redact: AWS key"}, {"output.guards": "failed open: deadline"}, {"secrets": "redact: k"}
    records = [
        request_record(
            number,
            clock(),
            revision=route.revision,
            assigned_version=1 + number % 2,
            served_version=1 + number % 2,
            guards=guards[number // 2 % 3] if number % 2 else {},
        )
        for number in range(600)
    ]
    registries.traffic.add_requests(records)
    registries.episodes.add_score(window_score(clock(), version=2, signal="served_model_change", verdict="drift"))

    def names() -> dict[str, str]:
        found = judgement(registries, "bot", 2, Limits(), trial_of(registries, "bot", 2))
        return {check.name: f"{check.verdict}: {check.detail}" for check in found.checks}

    clock.advance(1)
    assert "guards" not in names(), "nothing looks at answers"
    registries.policies.set("bot", GuardPolicy(output=OutputGuards()), by="ada", reason="r")
    assert names()["guards"] == "fail: 100 of 300 had a find of the guards, champion 0 of 300"
    assert names()["quality"].startswith("fail: served_model_change: drifts")
    registries.policies.set("bot", GuardPolicy(enabled=False, output=OutputGuards()), by="ada", reason="r")
    assert "guards" not in names()


def test_a_trial_is_found_however_long_it_is_and_whatever_is_damaged_before_it(
    registries: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.registry.routes.store._PAGE", 3)
    share(registries, 500)
    share(registries, 500, version=3)
    clock.advance(1)
    first = share(registries, 500)
    for _ in range(6):
        step = share(registries, 1_000)
    found = Trial(first.at, first.revision + 1)
    assert trial_of(registries, "bot", 2) == found
    _damage(registries, 1)
    assert trial_of(registries, "bot", 2) == found
    _damage(registries, step.revision - 1)
    with pytest.raises(Unreadable):
        trial_of(registries, "bot", 2)


def test_another_champion_begins_another_trial(registries: Registry, clock: Clock) -> None:
    before = share(registries, 500)
    clock.advance(1)
    arms = [Arm(version=2, weight_bp=500), Arm(version=1, weight_bp=0), Arm(version=3, weight_bp=9_500)]
    beside = registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=before.revision)
    assert trial_of(registries, "bot", 2) == Trial(beside.at, beside.revision)
    with pytest.raises(Refused, match="bot@3 has no share beside a champion"):
        trial_of(registries, "bot", 3)


def _damage(registry: Registry, revision: int) -> None:
    with registry.database.writing() as connection:
        connection.execute(sa.text("UPDATE routes SET arms = '[]' WHERE revision = :n"), {"n": revision})
