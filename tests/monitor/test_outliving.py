"""An attack, or a slow engine, goes on when another version takes over: no all-clear, and no second page."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.scene import Scene
from tests_support import alert_episode
from tuneloop.monitor.outliving import caused_by_none, gone_on, signals_of, version_of
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy
from tuneloop.registry.guard_policy import GuardPolicy
from tuneloop.registry.policies import RetrainingPolicy

FLAGGED: dict[str, Any] = {"guards": {"injection": "flag: instructions"}}
BY_TWO: dict[str, Any] = {"assigned_version": 2, "served_version": 2}
CHAT = {"kind": "slack", "name": "chat", "url": "http://127.0.0.1:9/hook", "examples": 0}


@pytest.fixture
def guarded(scene: Scene) -> Scene:
    """`bot` is guarded, may be retrained, and somebody is told of its episodes."""
    scene.registry.policies.set("bot", GuardPolicy(), by="ada", reason="test")
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=5), by="ada", reason="test")
    told = ReceiversPolicy.model_validate({"receivers": [CHAT]})
    scene.registry.policies.set(EVERY_MODEL, told, by="ada", reason="test")
    return scene


def told(scene: Scene) -> list[str]:
    """What receivers are to be told."""
    return [row.transition for row in reversed(scene.registry.outbox.all())]


def test_rolling_back_under_attack_is_no_all_clear_and_pages_nobody_again(guarded: Scene) -> None:
    guarded.usual(120)  # three windows in peace, which say nothing of what comes later
    guarded.watch()
    guarded.promote(2)
    guarded.usual(60, **BY_TWO)
    guarded.usual(20, **BY_TWO, **FLAGGED)
    guarded.watch(serves=("bot@2",))
    assert (guarded.the_episode().signal, told(guarded)) == ("injections", ["opened"])
    guarded.promote(1, "it might be the version")
    guarded.watch()
    episode = guarded.the_episode()
    assert episode.state == "open"
    assert "goes on for injections, which no version causes: bot@1 took over from bot@2 with" in episode.done[-1]
    guarded.usual(20, **FLAGGED)
    guarded.watch()
    guarded.watch(guarded.monitor())
    assert guarded.the_episode().windows == tuple(
        score.id for version in (2, 1) for score in guarded.scores("injections", version) if score.verdict == "drift"
    )
    guarded.usual(20)
    guarded.watch()
    assert guarded.the_episode().state == "open", "clear_after is two"
    guarded.usual(20)
    guarded.watch()
    assert guarded.the_episode().state == "resolved"
    assert told(guarded) == ["opened", "resolved"]


def test_what_the_next_version_does_is_its_own(guarded: Scene) -> None:
    guarded.usual(60)
    guarded.drifted(20, **FLAGGED)
    guarded.watch()
    assert {"prompt_drift", "injections"} <= set(guarded.the_episode().evidence["signals"])
    guarded.promote(2)
    guarded.correct(guarded.usual(20, **BY_TWO, **FLAGGED, answer="I cannot help with that."))
    guarded.watch(serves=("bot@2",))
    refusing, attack = guarded.registry.episodes.all("bot")
    assert (attack.state, signals_of(attack), attack.evidence["goes_on"]["version"]) == ("open", ("injections",), 2)
    assert (refusing.version, refusing.signal) == (2, "refusals")
    assert refusing.evidence["causes"][0]["kind"] == "attack"
    assert guarded.requests() == [], "neither asks for a training while the attack lasts"
    guarded.usual(80, **BY_TWO)  # forty more make its own reference
    guarded.watch(serves=("bot@2",))
    assert guarded.registry.episodes.get(attack.id).state == "resolved", "of the drift nothing is known any more"


def test_lateness_goes_on_where_an_engine_is_to_blame_and_ends_where_a_version_may_be(scene: Scene) -> None:
    def slow(kind: str, *more: str) -> tuple[str, ...]:
        signals: dict[str, Any] = {"latency": {}, "queue_time": {}, **{signal: {} for signal in more}}
        causes = [{"kind": kind, "why": "", "explains": list(signals)}]
        causes += [{"kind": "engine", "why": "", "explains": ["latency", "queue_time"]}]
        found = alert_episode(scene.clock(), signal="latency", evidence={"signals": signals, "causes": causes})
        on = gone_on(found, 2, scene.clock())
        assert (version_of(found), version_of(on), signals_of(on)) == (1, 2, caused_by_none(found))
        return caused_by_none(found)

    assert slow("engine") == ("latency", "queue_time")
    assert slow("deploy") == ()
    assert slow("load") == ()
    assert slow("attack", "injections") == ("injections",)
    assert slow("engine", "refusals") == ("latency", "queue_time")


def test_a_drift_ends_with_the_version_that_it_was_of(guarded: Scene) -> None:
    guarded.usual(60)
    guarded.drifted(20)
    guarded.watch()
    guarded.promote(2)
    guarded.watch(serves=("bot@2",))
    assert guarded.the_episode().state == "resolved"
