"""The watch over canaries: a served model that changed is told once, and training is not asked for what serving did."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest

from monitor.delivery.post import tell
from monitor.engine import fake_engine
from monitor.scene import Killed, Scene, failing
from tests_support import beat_engine
from tuneloop.monitor.canaries import (
    BASELINE_ROUNDS,
    FRESH_ROUNDS,
    SPLITS,
    canaries,
)
from tuneloop.monitor.canary_baseline import Baselines
from tuneloop.monitor.canary_stream import CanaryStream
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.reading import read_texts
from tuneloop.monitor.watch import Monitor
from tuneloop.registry.episodes import resolved
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import AlertEpisode, Arm, WindowScore
from tuneloop.registry.policies import RetrainingPolicy


@pytest.fixture
def watched(scene: Scene) -> Scene:
    """`bot@1` with its canaries watched, on an engine that is a little noisy."""
    scene.settings = scene.settings.model_copy(update={"canary_every_s": 60.0})
    rng = random.Random(5)
    scene.engine.more = lambda _name, _question: rng.gauss(0, 0.002)
    return scene


def checks(scene: Scene, version: int = 1) -> list[WindowScore]:
    return scene.scores("served_model_change", version)


def served(scene: Scene, monitor: Monitor, n: int = 20) -> None:
    """Minutes of traffic, then a pass."""
    scene.usual(n)
    scene.clock.advance(60)
    scene.watch(monitor)


def of_canaries(scene: Scene) -> list[AlertEpisode]:
    return [e for e in scene.registry.episodes.all("bot") if e.signal == "served_model_change"]


def test_the_baseline_is_frozen_once_and_a_quiet_check_costs_one_reading(watched: Scene) -> None:
    scene = watched
    scene.watch()
    (frozen,) = checks(scene)
    assert (frozen.n, frozen.verdict) == (BASELINE_ROUNDS, "none")
    assert len(scene.engine.bodies) == BASELINE_ROUNDS * len(canaries())
    scene.watch()
    assert len(checks(scene)) == 1, "no traffic has earned a check"
    served(scene, scene.monitor())
    read = [body for body in scene.engine.bodies if body.get("prompt") in canaries()]
    first, check = checks(scene)
    assert first == frozen
    assert (check.verdict, check.detail["baseline"]) == ("none", frozen.id)
    assert len(read) <= (BASELINE_ROUNDS + 1 + FRESH_ROUNDS) * len(canaries())
    assert check.detail["alpha"] == pytest.approx(20 / 2_000 * 0.25 / 4.5), "what twenty answers have earned"


def test_a_baseline_is_kept_whole_or_not_at_all_and_the_first_of_two_stands(watched: Scene) -> None:
    scene = watched
    beat_engine(scene.registry, "bot@1", url=scene.engine.url, at=scene.clock.now)
    texts = iter(range(5 * len(canaries())))  # told to end in the sixth round
    told = CanaryStream(
        scene.registry, scene.settings, scene.client, Metrics(), stopping=lambda: next(texts, None) is None
    )
    Baselines(told).run(lambda _seconds: pytest.fail("it has to end at once"))
    assert len(scene.engine.bodies) > 4 * len(canaries())
    assert checks(scene) == []
    one, other = (CanaryStream(scene.registry, scene.settings, scene.client, Metrics()) for _ in range(2))
    read = scene.engine.more

    def overtaken(name: str, question: str) -> float:
        scene.engine.more = read
        Baselines(other).round()
        return 0.0

    scene.engine.more = overtaken
    Baselines(one).round()
    assert [score.n for score in checks(scene)] == [BASELINE_ROUNDS]


def test_a_budget_so_strict_that_a_check_needs_more_records_than_a_window_holds_still_lets_it_be_made(
    watched: Scene,
) -> None:
    scene, monitor = watched, watched.monitor(mean_run_length=40_000)
    scene.watch(monitor)
    served(scene, monitor, 30)
    assert len(checks(scene)) == 1, "30 answers of 39 have earned nothing yet"
    served(scene, monitor, 10)
    assert [check.n for check in checks(scene)] == [BASELINE_ROUNDS, 40]
    assert checks(scene)[-1].detail["alpha"] >= 1 / SPLITS


def test_a_changed_model_pages_once_is_never_retrained_and_clears_when_it_is_back(watched: Scene) -> None:
    scene, monitor = watched, watched.monitor()
    everything = RetrainingPolicy(signals=("prompt_drift", "perplexity"), min_rows=1, cooldown_s=0)
    scene.registry.policies.set("bot", everything, by="ada", reason="test")
    tell(scene.registry, {"kind": "slack", "name": "on-call", "url": "http://127.0.0.1:1"})
    served(scene, monitor, 60)
    scene.engine.moved = 0.02
    served(scene, monitor)
    served(scene, monitor)
    (episode,) = of_canaries(scene)
    assert episode.evidence["causes"][0]["kind"] == "served model"
    assert (episode.severity, episode.runbook) == ("page", "docs/runbooks/served_model_change.md")
    assert "no longer the model it was" in episode.evidence["summary"]
    assert len(episode.windows) == 2
    scene.correct(scene.drifted(20))
    scene.clock.advance(60)
    scene.watch(monitor)
    drift = next(e for e in scene.registry.episodes.all("bot") if e.signal == "prompt_drift")
    assert drift.evidence["held"] == "serving"
    assert [sorted(e.evidence["signals"]) for e in of_canaries(scene)] == [["served_model_change"]], "close in time"
    assert "served_model_change" not in drift.evidence["signals"]
    assert f"({episode.id} says so)" in drift.done[-1]
    assert scene.requests() == []
    scene.engine.moved = 0.0
    served(scene, monitor)
    assert of_canaries(scene)[0].state == "open"
    served(scene, monitor)
    assert of_canaries(scene)[0].state == "resolved"
    assert [d.transition for d in scene.registry.outbox.all(episode.id)] == ["resolved", "opened"]
    assert scene.requests() != [], "the drift is a drift after all"


def test_a_change_that_a_person_accepts_becomes_the_new_baseline(watched: Scene) -> None:
    scene, monitor = watched, watched.monitor()
    scene.watch(monitor)
    scene.engine.moved = 0.02
    served(scene, monitor)
    (episode,) = of_canaries(scene)
    over = resolved(episode, "int8 on purpose", scene.clock())
    scene.registry.episodes.update(episode, over, by="ada", action="episode.resolve")
    served(scene, monitor)
    assert "rounds" in checks(scene)[-1].detail
    served(scene, monitor)
    assert checks(scene)[-1].verdict == "none"
    assert [e.state for e in of_canaries(scene)] == ["resolved"]


def test_fresh_rounds_are_read_in_no_way_that_the_baseline_fixed(
    watched: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, monitor = watched, watched.monitor(scorer_concurrency=8)
    ways: list[tuple[int, tuple[str, ...]]] = []

    def read(*given: Any, concurrency: int, **named: Any) -> Any:
        ways.append((concurrency, tuple(given[3])))
        return read_texts(*given, concurrency=concurrency, **named)

    monkeypatch.setattr("tuneloop.monitor.canary_stream.read_texts", read)
    scene.watch(monitor)
    scene.engine.moved = 0.02
    served(scene, monitor)
    assert len(ways) == BASELINE_ROUNDS + 1 + FRESH_ROUNDS
    assert len({order for _, order in ways}) == len(ways), "each is drawn anew"
    assert max(concurrency for concurrency, _ in ways[-FRESH_ROUNDS:]) > 6, "any number at once may come up"


def test_a_machine_of_another_kind_is_told_and_once_accepted_each_engine_is_held_against_itself(
    watched: Scene,
) -> None:
    scene, monitor = watched, watched.monitor()
    with fake_engine() as other:
        other.moved = 0.02

        def served_by_both() -> WindowScore:
            scene.usual(20)
            scene.clock.advance(60)
            beat_engine(scene.registry, "bot@1", id="e2", url=other.url, at=scene.clock.now)
            scene.watch(monitor)
            return checks(scene)[-1]

        scene.watch(monitor)
        moved = served_by_both().detail["engines"]
        assert {key: found["alarm"] for key, found in moved.items()} == {"e1": False, "e2": True}
        (episode,) = of_canaries(scene)
        over = resolved(episode, "a new machine", scene.clock())
        scene.registry.episodes.update(episode, over, by="ada", action="episode.resolve")
        assert set(served_by_both().detail["by_engine"]) == {"e1", "e2"}
        assert served_by_both().verdict == "none"
        other.moved = 0.04
        moved = served_by_both().detail["engines"]
        assert {key: found["alarm"] for key, found in moved.items()} == {"e1": False, "e2": True}
        scene.engine.moved, other.moved = 0.02, 0.02
        moved = served_by_both().detail["engines"]
        assert {key: found["alarm"] for key, found in moved.items()} == {"e1": True, "e2": False}
        (episode,) = (episode for episode in of_canaries(scene) if episode.state == "open")
        assert episode.evidence["causes"][0]["why"].startswith("all 2 engines"), "what was seen of one stays seen"


def test_other_canary_texts_end_no_episode_since_what_moved_is_in_the_new_baseline(
    watched: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, monitor = watched, watched.monitor()
    scene.watch(monitor)
    scene.engine.moved = 0.02
    served(scene, monitor)
    monkeypatch.setattr("tuneloop.monitor.canary_stream.canaries", lambda: canaries()[:-1])
    for _ in range(4):
        served(scene, monitor)
    assert [check.verdict for check in checks(scene)[-3:]] == ["none"] * 3
    (episode,) = of_canaries(scene)
    assert episode.state == "open", "nothing says that the model is the old one again"
    over = resolved(episode, "engine restarted", scene.clock())
    scene.registry.episodes.update(episode, over, by="ada", action="episode.resolve")
    served(scene, monitor)
    scene.engine.moved = 0.04
    served(scene, monitor)
    served(scene, monitor)
    scene.engine.moved = 0.02
    served(scene, monitor)
    served(scene, monitor)
    assert [e.state for e in of_canaries(scene)] == ["resolved", "resolved"], "a later one ends by itself as ever"


def test_an_engine_that_cannot_be_read_is_never_a_pass_and_the_wrong_one_of_two_is_named(watched: Scene) -> None:
    scene, monitor = watched, watched.monitor()
    scene.watch(monitor)
    beat_engine(scene.registry, "bot@1", id="e2", url="http://127.0.0.1:1", at=scene.clock.now)
    scene.usual(20)
    scene.clock.advance(60)
    beat_engine(scene.registry, "bot@1", id="e2", url="http://127.0.0.1:1", at=scene.clock.now)
    scene.watch(monitor)
    score = checks(scene)[-1]
    assert score.verdict == "not enough data"
    assert "127.0.0.1:1 cannot read a text as bot@1" in score.detail["reason"]
    assert set(score.detail["engines"]) == {"e1"}


def test_a_version_that_leaves_the_route_takes_its_episode_along(watched: Scene) -> None:
    scene, monitor = watched, watched.monitor()
    scene.watch(monitor)
    scene.engine.moved = 0.02
    served(scene, monitor)
    scene.promote(2)
    scene.watch(monitor, serves=("bot@1", "bot@2"))
    assert of_canaries(scene)[0].state == "open", "at weight 0 it is still loaded, for a rollback"
    assert [score.verdict for score in checks(scene, 2)] == ["none"]
    scene.registry.routes.write("bot", [Arm(version=2, weight_bp=10_000)], by="ada", reason="test", expected_revision=2)
    scene.watch(monitor, serves=("bot@2",))
    assert of_canaries(scene)[0].state == "resolved"


@pytest.mark.parametrize("fault", [Killed(), Unavailable("the database is away")])
def test_a_change_that_was_stored_and_not_acted_on_is_told_once_by_the_next_pass(
    watched: Scene, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = watched
    scene.watch(scene.monitor())
    scene.engine.moved = 0.02
    with monkeypatch.context() as patched, suppress(Killed, Unavailable):
        patched.setattr(scene.registry.episodes, "open", failing(fault))
        served(scene, scene.monitor())
    assert (checks(scene)[-1].verdict, of_canaries(scene)) == ("drift", [])
    scene.engine.moved = 0.0  # repaired meanwhile
    scene.watch()
    (episode,) = of_canaries(scene)
    assert (episode.state, episode.windows) == ("open", (checks(scene)[-1].id,))
    scene.watch()
    assert of_canaries(scene) == [episode]
    scene.registry.episodes.resolve(episode.id, by="ada", reason="mended")
    scene.watch()
    assert [found.state for found in of_canaries(scene)] == ["resolved"]
