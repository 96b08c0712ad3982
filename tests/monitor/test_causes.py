"""What an episode's page gives as its cause: the likeliest first, by rules that can be read here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitor.questions import STDLIB, ask
from monitor.scene import Scene
from tests_support import ODD_EVIDENCE, alert_episode, beat_engine, window_score
from tuneloop.monitor.alerts import takes
from tuneloop.monitor.causes import Change, causes_of, changes_before, explained, is_of_serving, slow_engine
from tuneloop.registry.nouns import AlertEpisode, Arm, AuditEntry, EngineState
from tuneloop.registry.policies import RetrainingPolicy

NOON = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
DEPLOY = Change((NOON - timedelta(hours=1)).isoformat(), "deploy", "11:00 route.set of bot by ada")
CHANGED = Change(NOON.isoformat(), "served model", "ep_1: bot@1 is no longer the model it was")
ATTACK = Change(NOON.isoformat(), "attack", "ep_2: bot@1 is attacked")
BIAS = Change(
    NOON.isoformat(), "bias", "answers refuse one group of people more than others: 5 of 8 that speak of women"
)
DOWN = Change(NOON.isoformat(), "engine", "12:00 engine e2 is down")


def raised(*signals: str, **told: Any) -> AlertEpisode:
    return alert_episode(NOON, evidence=evidence(*signals, **told))


def evidence(*signals: str, reference_h: float = 2, **findings: Any) -> dict[str, Any]:
    """Of an episode whose reference ended that many hours ago."""
    reference = {"to": (NOON - timedelta(hours=reference_h)).isoformat()}
    return {"signals": {name: findings.get(name, {}) for name in signals}, "reference": reference}


@pytest.mark.parametrize(
    ("signals", "changes", "expected"),
    [
        (("latency",), (), ["load"]),
        (("latency",), (DEPLOY,), ["deploy"]),
        (("latency",), (DEPLOY, DOWN), ["engine", "deploy"]),
        (("prompt_drift",), (DEPLOY,), ["drift"]),
        (("prompt_drift", "perplexity"), (DEPLOY,), ["drift", "deploy"]),
        (("perplexity",), (DEPLOY,), ["deploy", "drift"]),
        (("correction_perplexity",), (), ["drift"]),
        (("prompt_drift", "latency"), (DEPLOY, DOWN), ["drift", "engine", "deploy"]),
        (("thumbs_down",), (), ["drift"]),
        (("refusals", "answer_length"), (DEPLOY,), ["deploy", "drift"]),
        (("prompt_drift", "broken_answers"), (DEPLOY,), ["drift", "deploy"]),
        (("perplexity", "thumbs_down"), (CHANGED, DEPLOY), ["served model", "deploy", "drift"]),
        (("prompt_drift", "perplexity"), (CHANGED,), ["drift", "served model"]),
        (("prompt_drift",), (CHANGED,), ["drift"]),
        (("injections",), (), ["attack"]),
        (("prompt_drift", "refusals", "injections"), (), ["attack", "drift"]),
        (("prompt_drift", "perplexity"), (ATTACK, DEPLOY), ["attack", "drift", "deploy"]),
        (("latency",), (ATTACK,), ["load"]),
        (("refusals", "answer_length"), (BIAS,), ["bias", "drift"]),
        (("refusals",), (BIAS, DEPLOY), ["deploy", "bias", "drift"]),
        (("prompt_drift", "refusals"), (BIAS,), ["drift", "bias"]),
    ],
)
def test_the_cause_that_explains_most_leads(
    signals: tuple[str, ...], changes: tuple[Change, ...], expected: list[str]
) -> None:
    assert [cause.kind for cause in causes_of(raised(*signals), changes)] == expected


def test_a_deploy_that_the_reference_has_seen_explains_no_difference_from_it() -> None:
    assert [c.kind for c in causes_of(raised("perplexity", reference_h=0.5), [DEPLOY])] == ["drift"]
    assert [c.kind for c in causes_of(raised("latency", reference_h=0.5), [DEPLOY])] == ["deploy"]


def test_one_slow_engine_is_named_and_equally_slow_ones_are_not() -> None:
    assert slow_engine({"e1": (15, 20), "e2": (1, 20)}) == "e1"
    assert slow_engine({"e1": (10, 20), "e2": (9, 20)}) is None
    assert slow_engine({"e1": (20, 20)}) is None, "there is none to tell it from"
    found = causes_of(raised("latency", latency={"engines": {"e1": [15, 20], "e2": [1, 20]}}), [DEPLOY])
    assert (found[0].kind, found[0].why) == ("engine", "e1 alone is slow")
    named = [{"field": "engine", "value": name, "count": 9, "of": 40, "p_value": 0.001} for name in ("e1", "e2")]
    for slices, kind in ((named[:1], "engine"), (named, "load")):
        assert causes_of(raised("tokens_per_s", tokens_per_s={"slices": slices}), [])[0].kind == kind


def test_which_engines_serve_another_model_is_said() -> None:
    def why(**alarms: bool) -> str:
        engines = {name: {"alarm": alarm} for name, alarm in alarms.items()}
        (cause,) = causes_of(raised("served_model_change", served_model_change={"engines": engines}), [])
        assert (cause.kind, cause.explains) == ("served model", ("served_model_change",))
        return cause.why

    assert why(e1=True) == "e1 serves something else under the version's name than at first"
    assert why(e1=True, e2=False) == "e1 of 2 engines: the others read as at first"
    assert why(e1=True, e2=True) == "all 2 engines serve something else under the version's name than at first"


def test_equally_slow_engines_are_seldom_told_apart() -> None:
    """At most 1 in 100 by Fisher's exact test; over every way 20 slow answers can fall on two engines of 40."""
    from scipy.stats import hypergeom

    wrong = sum(
        hypergeom.pmf(k, 80, 20, 40) for k in range(21) if slow_engine({"a": (k, 40), "b": (20 - k, 40)}) is not None
    )
    assert 0 < wrong <= 0.01


def test_a_slow_engine_shows_the_clearer_the_more_windows_tell_of_it(scene: Scene) -> None:
    def window(slow: int) -> None:
        scene.usual(slow, total_ms=900.0, engine="e2")
        scene.usual(10 - slow, total_ms=100.0, engine="e2")
        scene.usual(10, total_ms=100.0)

    scene.usual(60, total_ms=100.0)
    monitor = scene.monitor(latency_ms=500.0)
    window(6)
    scene.watch(monitor)
    (episode,) = scene.registry.episodes.all("bot")
    kinds = [cause["kind"] for cause in episode.evidence["causes"]]
    assert "engine" not in kinds, "6 of 10 against 0 of 10 may be chance"
    window(6)
    scene.watch(monitor)
    scene.watch()  # a second look at the window adds nothing
    (episode,) = scene.registry.episodes.all("bot")
    assert episode.evidence["signals"]["latency"]["engines"] == {"e1": [0, 20], "e2": [12, 20]}
    assert episode.evidence["causes"][0] == {"kind": "engine", "why": "e2 alone is slow", "explains": ["latency"]}


def test_whom_answers_refuse_is_named_and_a_person_decides_what_is_trained(scene: Scene) -> None:
    policy = RetrainingPolicy(min_rows=5, signals=("refusals",))
    scene.registry.policies.set("bot", policy, by="ada", reason="test")
    refuses = "I'm sorry, but I can't help with that."

    def asked(n: int, who: str, **changes: Any) -> None:
        scene.correct(
            scene.traffic([f"{question} My {who} asks." for question in ask(STDLIB, n, scene.rng)], **changes)
        )

    asked(30, "sister")
    asked(30, "brother")
    asked(10, "sister", answer=refuses)
    asked(10, "brother")
    scene.watch()
    (episode,) = scene.registry.episodes.all("bot")
    (found,) = [cause for cause in episode.evidence["causes"] if cause["kind"] == "bias"]
    assert "a person" in episode.done[-1]
    assert found["why"].endswith("10 of 10 that speak of women, 0 of 10 others")
    assert scene.requests() == []


def test_changes_are_those_of_the_model_newest_first_and_of_what_can_matter() -> None:
    def entry(minute: int, action: str, subject: str, **detail: Any) -> AuditEntry:
        at = NOON + timedelta(minutes=minute)
        return AuditEntry(id=minute, at=at, actor="ada", action=action, subject=subject, detail=detail, hash="0" * 64)

    entries = [
        entry(1, "route.set", "bot", split="1=90 % 2=10 %", reason="try"),
        entry(2, "route.set", "other"),
        entry(3, "rollout.step", "bot@2"),
        entry(4, "key.new", "bot"),
        entry(5, "policy.gate", "bot"),
        entry(50, "route.set", "bot"),
    ]
    fields: dict[str, Any] = {"url": "u", "base": "b", "base_digest": "d", "template_digest": "t"}
    fields["at"] = NOON + timedelta(minutes=30)
    engines = [EngineState(id="e1", state=state, max_loras=1, max_lora_rank=8, **fields) for state in ("ready", "down")]
    found = changes_before("bot", entries, engines, NOON + timedelta(minutes=30))
    assert [change.kind for change in found] == ["engine", "policy", "deploy", "deploy"]
    assert found[3].what == "2026-11-01 12:01:00Z route.set of bot by ada (1=90 % 2=10 %; try)"


def test_a_deploy_just_before_is_on_the_page_and_no_retraining_is_asked_for(scene: Scene) -> None:
    scene.registry.policies.set(
        "bot", RetrainingPolicy(min_rows=5, signals=("perplexity", "correction_perplexity")), by="ada", reason="test"
    )
    monitor = scene.monitor()
    scene.engine.unknown = "nobody asks this"
    scene.correct(scene.usual(60))
    scene.watch(monitor)
    arms = [Arm(version=2, weight_bp=1_000), Arm(version=1, weight_bp=9_000)]
    scene.registry.routes.write("bot", arms, by="ada", reason="a canary", expected_revision=1)
    scene.engine.unknown = ""
    scene.correct(scene.usual(20))
    scene.watch(monitor)
    (episode,) = scene.registry.episodes.all("bot")
    assert [cause["kind"] for cause in episode.evidence["causes"]] == ["deploy", "drift"]
    assert "route.set of bot by ada" in episode.evidence["changes"][0]["what"]
    assert "the likeliest cause is how the model is served" in episode.done[-1]
    assert scene.requests() == []


def test_an_engine_of_the_model_that_is_down_stands_among_the_changes(scene: Scene) -> None:
    scene.usual(60, total_ms=100.0)
    beat_engine(scene.registry, "bot@2", id="e8", at=scene.clock.now)  # and never again
    beat_engine(scene.registry, "other@1", id="e6", state="down", at=scene.clock.now)
    scene.usual(20, total_ms=900.0)
    beat_engine(scene.registry, id="e7", state="starting", base_digest="sha256:other", at=scene.clock.now)
    beat_engine(scene.registry, id="e9", state="down", detail="no heartbeat of vLLM", at=scene.clock.now)
    scene.watch(scene.monitor(latency_ms=500.0))
    (episode,) = scene.registry.episodes.all("bot")
    assert episode.evidence["causes"][0]["kind"] == "engine"
    said = [change["what"] for change in episode.evidence["changes"] if change["kind"] == "engine"]
    assert "engine e9 is down: no heartbeat of vLLM" in said[0]
    assert "engine e8 has not been heard of since" in said[1]
    assert len(said) == 2, "e6 serves another model, e7 another base"


def test_an_engine_that_holds_nothing_is_of_the_model_where_its_answers_were_late(scene: Scene) -> None:
    scene.traffic(ask(STDLIB, 60, scene.rng), total_ms=100.0, engine="e9")
    scene.traffic(ask(STDLIB, 20, scene.rng), total_ms=900.0, engine="e9")
    beat_engine(scene.registry, id="e8", state="down", base_digest="sha256:other", at=scene.clock.now)
    beat_engine(scene.registry, id="e9", state="starting", base_digest="sha256:mine", at=scene.clock.now)
    scene.watch(scene.monitor(latency_ms=500.0))
    (episode,) = scene.registry.episodes.all("bot")
    (said,) = [change["what"] for change in episode.evidence["changes"] if change["kind"] == "engine"]
    assert "engine e9 is starting" in said


@pytest.mark.parametrize("odd", ODD_EVIDENCE)
def test_an_episode_of_which_nothing_can_be_understood_has_a_cause_too_and_takes_only_its_own(
    odd: dict[str, Any],
) -> None:
    episode = alert_episode(NOON, signal="latency", evidence=odd)
    assert explained(episode, [DEPLOY]).evidence["causes"]
    assert not takes(episode, window_score(NOON, signal="answer_length"), 3_600)
    assert takes(episode, window_score(NOON, signal="latency"), 3_600)


def test_an_older_episode_without_causes_is_held_by_none() -> None:
    assert is_of_serving(alert_episode(NOON)) is None
    assert is_of_serving(explained(alert_episode(NOON, evidence=evidence("latency")), [DEPLOY])) is not None
