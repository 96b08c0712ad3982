"""Episodes of a watch: what is seen together is one, it ends when it is over, and too little to judge ends nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from monitor.scene import Scene
from tests_support import alert_episode, window_score
from tuneloop.monitor.alerts import MAX_WINDOWS, joined, opened, takes
from tuneloop.monitor.clearing import is_quiet
from tuneloop.monitor.keeping import Keeper
from tuneloop.monitor.reference import reference_of
from tuneloop.monitor.slo import Slo
from tuneloop.monitor.standards import Standard
from tuneloop.monitor.watch import Monitor
from tuneloop.registry.deliveries.outbox import Outbox
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy, Webhook
from tuneloop.registry.episodes import resolved
from tuneloop.registry.nouns import WindowScore

TOLD = ReceiversPolicy(receivers=(Webhook(kind="webhook", name="ops", url="http://127.0.0.1:9", secret_file="/key"),))


def test_an_episode_clears_only_after_enough_quiet_windows(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(60)
    scene.drifted(20)
    scene.watch(monitor)
    for _ in range(3):
        scene.usual(20)
        scene.watch(monitor)
        assert scene.the_episode().state == "open"
    scene.usual(20)
    scene.watch(monitor)
    episode = scene.the_episode()
    assert episode.state == "resolved"
    assert "4 windows in a row without an alarm; the newest 80 questions together are like" in episode.done[-1]


def test_windows_that_time_has_closed_are_looked_at_together_once_they_hold_as_many_records(scene: Scene) -> None:
    """Four full windows are looked at as one sample; of ten records each that takes eight."""
    scene.usual(60)
    scene.drifted(20)
    monitor = scene.monitor(window_s=60)
    scene.watch(monitor, serves=())
    for number in range(8):
        assert scene.the_episode().state != "resolved", f"after {number} of eight"
        scene.usual(10)
        scene.clock.advance(60)
        assert scene.watch(monitor, serves=()).judged == 1
    assert "8 windows in a row" in scene.the_episode().done[-1]
    assert "the newest 80 questions together" in scene.the_episode().done[-1]


def test_an_episode_of_many_small_windows_ends_once_they_hold_as_many_records(scene: Scene) -> None:
    settings = scene.settings.model_copy(update={"window": 500, "window_s": 60.0})
    keeper = Keeper(scene.registry, settings, watches_canaries=False)
    usual = Standard(reference_of(scene.usual(60), frozen=True))
    ids, shares = tuple(f"req-{n}" for n in range(10)), {"reference": 0.0, "window": 1.0}
    for number in range(101):  # one that alarmed, then as many records as two full ones hold
        told: dict[str, Any] = {"window": number, "mean_run_length": 10_000, "reference": {}, "shares": shares}
        fields = {"verdict": "none" if number else "drift", "p_value": 0.5, "request_ids": ids, "detail": told}
        score = window_score(scene.clock(), id=f"w{number}", signal="refusals", **fields)
        scene.registry.episodes.add_score(score)
        if number == 0:
            keeper.take([score])
        if number in (99, 100):
            keeper.end_quiet(score, usual)
            assert (scene.the_episode().state == "resolved") is (number == 100)


def test_a_drift_that_windows_come_to_miss_and_see_again_is_one_episode_and_told_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.registry.policies.set(EVERY_MODEL, TOLD, by="ada", reason="test")
    monitor = scene.monitor(window=30, reference=120, mean_run_length=3_000)
    scene.usual(120)
    scene.drifted(30)
    for _ in range(4):  # a tenth of it: less than one window shows
        scene.drifted(3)
        scene.usual(27)
    scene.watch(monitor, serves=())  # questions alone: no engine reads any
    quiet = scene.scores()[1:]
    assert [score.verdict for score in quiet] == ["none"] * 4
    assert is_quiet(quiet, scene.settings.clear_after)
    episode = scene.the_episode()
    assert episode.state == "open"
    (said,) = [line for line in episode.done if "not over" in line]
    assert "4 windows in a row without an alarm, but the newest 120 questions together are not yet like" in said
    with monkeypatch.context() as patched:
        for name in ("is_quiet", "longer_look"):
            patched.setattr(f"tuneloop.monitor.keeping.{name}", lambda *_: pytest.fail("there is no new window to ask"))
        scene.watch(monitor, serves=())
    scene.drifted(30)
    scene.watch(monitor, serves=())
    assert scene.scores()[-1].verdict == "drift"
    assert scene.the_episode().windows[-1] == scene.scores()[-1].id
    told = [delivery.transition for delivery in Outbox(scene.registry.database).all()]
    assert told.count("opened") == 1
    assert "resolved" not in told


def test_windows_without_enough_data_clear_nothing(scene: Scene) -> None:
    scene.usual(60)
    scene.drifted(20)
    scene.watch()
    assert "perplexity" in scene.the_episode().evidence["signals"]
    scene.usual(80)
    scene.watch(serves=())
    assert [s.verdict for s in scene.scores("perplexity")][1:] == ["not enough data"] * 4
    assert scene.the_episode().state == "open"


def harder_to_answer(scene: Scene, monitor: Monitor) -> None:
    """Users ask the same kind of questions, of which the model no longer knows the answers."""
    scene.engine.unknown = "nobody asks this"
    scene.correct(scene.usual(60))
    scene.watch(monitor)
    scene.engine.unknown = ""  # every answer read from now on
    scene.correct(scene.usual(20))
    scene.watch(monitor)
    assert list(scene.the_episode().evidence["signals"]) == ["correction_perplexity"]


def test_users_who_stop_correcting_hold_up_no_all_clear_that_another_signal_gives(scene: Scene) -> None:
    monitor = scene.monitor()
    harder_to_answer(scene, monitor)
    scene.drifted(20)
    scene.watch(monitor)
    assert "prompt_drift" in scene.the_episode().evidence["signals"]
    scene.usual(60)
    scene.watch(monitor)
    assert scene.the_episode().state == "open"
    scene.usual(20)
    scene.watch(monitor)
    episode = scene.the_episode()
    assert episode.state == "resolved"
    assert "too little feedback since to judge correction_perplexity by" in episode.done[-1]


def test_silence_alone_gives_no_all_clear(scene: Scene) -> None:
    monitor = scene.monitor()
    harder_to_answer(scene, monitor)
    scene.usual(100)
    scene.watch(monitor)
    assert scene.the_episode().state == "open"


@pytest.mark.parametrize("signal", ["latency", "served_model_change"])
def test_an_episode_of_what_is_no_longer_watched_ends_and_says_so(scene: Scene, signal: str) -> None:
    watching = {"latency": {"latency_ms": 500.0}, "served_model_change": {"canary_every_s": 60.0}}[signal]
    monitor = scene.monitor(**watching)
    scene.usual(60, total_ms=100.0)
    scene.watch(monitor)
    scene.engine.moved = 0.02
    scene.clock.advance(60)
    scene.usual(20, total_ms=900.0)
    scene.watch(monitor)
    assert (scene.the_episode().signal, scene.the_episode().state) == (signal, "open")
    scene.watch()
    assert scene.the_episode().state == "resolved"
    assert scene.the_episode().done[-1].endswith("none of its signals is watched any more")


def test_a_signal_that_is_no_longer_watched_holds_up_no_all_clear(scene: Scene) -> None:
    scene.usual(60, total_ms=100.0)
    scene.drifted(20, total_ms=900.0)
    scene.watch(scene.monitor(latency_ms=500.0))
    assert "latency" in scene.the_episode().evidence["signals"]
    scene.usual(80)
    scene.watch()
    assert "4 windows in a row" in scene.the_episode().done[-1]


def test_answers_no_longer_kept_hold_up_no_all_clear_that_another_signal_gives(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(60)
    scene.drifted(20, answer="")
    scene.watch(monitor)
    assert "broken_answers" in scene.the_episode().evidence["signals"]
    scene.usual(80, answer=None)
    scene.watch(monitor)
    assert scene.the_episode().state == "resolved"
    assert "too little text since to judge broken_answers by" in scene.the_episode().done[-1]


def test_a_person_who_resolves_an_episode_is_not_overruled_by_the_same_window(scene: Scene) -> None:
    scene.usual(60)
    scene.drifted(20)
    scene.watch()
    episode = scene.the_episode()
    over = resolved(episode, "known", scene.clock())
    scene.registry.episodes.update(episode, over, by="ada", action="episode.resolve")
    scene.watch()
    assert scene.the_episode().state == "resolved"
    scene.drifted(20)
    scene.watch()
    states = sorted(found.state for found in scene.registry.episodes.all("bot"))
    assert states == ["open", "resolved"], "a new window that drifts is a new sight of it"


def test_what_is_seen_together_is_one_episode_and_pages_when_one_of_it_does(scene: Scene) -> None:
    scene.usual(60, total_ms=100.0, ttft_ms=20.0)
    scene.drifted(20, total_ms=100.0, ttft_ms=900.0)
    scene.watch(scene.monitor(latency_ms=500.0, ttft_ms=200.0))
    episode = scene.the_episode()
    assert set(episode.evidence["signals"]) == {"prompt_drift", "perplexity", "latency"}
    assert (episode.signal, episode.severity) == ("prompt_drift", "page")
    assert episode.evidence["signals"]["latency"]["ttft_ms"]["p95"] == 900.0
    assert episode.evidence["causes"][0]["kind"] == "drift", "it explains all three"


@pytest.mark.parametrize(("group_s", "apart_s"), [(0.0, 0.0), (600.0, 700.0)])
def test_latency_seen_apart_is_a_problem_of_its_own(scene: Scene, group_s: float, apart_s: float) -> None:
    monitor = scene.monitor(latency_ms=500.0, ttft_ms=200.0, group_s=group_s)
    scene.usual(60, total_ms=100.0, ttft_ms=20.0)
    scene.drifted(20, total_ms=100.0, ttft_ms=20.0)
    scene.clock.advance(apart_s)
    scene.usual(20, total_ms=100.0, ttft_ms=900.0)
    scene.watch(monitor)
    drift, latency = sorted(scene.registry.episodes.all("bot"), key=lambda found: found.signal, reverse=True)
    assert set(drift.evidence["signals"]) == {"prompt_drift", "perplexity"}
    assert (latency.signal, latency.severity, latency.runbook) == ("latency", "page", "docs/runbooks/latency.md")
    assert latency.evidence["signals"]["latency"]["engines"] == {"e1": [20, 20]}


def test_latency_seen_beside_a_drift_that_goes_on_is_the_same_episode(scene: Scene) -> None:
    monitor = scene.monitor(latency_ms=500.0, ttft_ms=200.0, group_s=10.0)
    scene.usual(60, total_ms=100.0, ttft_ms=20.0)
    scene.drifted(60, total_ms=100.0, ttft_ms=20.0)
    scene.drifted(20, total_ms=100.0, ttft_ms=900.0)
    scene.watch(monitor)
    assert set(scene.the_episode().evidence["signals"]) == {"prompt_drift", "perplexity", "latency"}


def test_an_episode_that_has_enough_windows_still_knows_how_long_it_goes_on(scene: Scene) -> None:
    start, long = scene.clock(), timedelta(minutes=5)

    def seen(n: int, signal: str = "prompt_drift") -> WindowScore:
        fields = {"window_start": start + n * long, "window_end": start + (n + 1) * long}
        detail = {"mean_run_length": 10_000, "reference": {}}
        return window_score(start + (n + 1) * long, id=f"{signal}/{n}", signal=signal, detail=detail, **fields)

    episode, last = opened(seen(0), start), MAX_WINDOWS + 10
    for n in range(1, last + 1):
        episode = joined(episode, seen(n), start + (n + 1) * long)
    assert len(episode.windows) == MAX_WINDOWS
    assert takes(episode, seen(last + 1, "latency"), long.total_seconds())
    assert not takes(episode, seen(last + 3, "latency"), long.total_seconds())
    assert joined(episode, seen(last), scene.clock()) == episode, "a window that is judged again adds nothing"


def test_a_signal_whose_problem_joined_an_open_episode_joins_it_too(scene: Scene) -> None:
    slow = alert_episode(scene.clock(), signal="latency", evidence={"signals": {"latency": {}}})
    drifting = alert_episode(scene.clock(), signal="latency", evidence={"signals": {"latency": {}, "prompt_drift": {}}})
    for signal, expected in (("perplexity", True), ("latency", True), ("served_model_change", False)):
        assert takes(drifting, window_score(scene.clock(), signal=signal), 0) == expected, signal
    assert not takes(slow, window_score(scene.clock(), signal="perplexity"), 0)


def test_latency_that_prometheus_pages_for_is_a_ticket_here(scene: Scene) -> None:
    slo = {"*": Slo(latency=0.95, latency_s=0.5)}
    scene.usual(60, total_ms=100.0)
    scene.usual(20, total_ms=900.0)
    scene.watch(scene.monitor(latency_ms=500.0, slo=slo))
    assert (scene.the_episode().signal, scene.the_episode().severity) == ("latency", "ticket")
