"""Watching: windows are judged once, what was judged is kept, and what goes wrong in one place stays there."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest

from monitor.engine import FakeEngine
from monitor.scene import Scene
from tests_support import Clock, alert_episode, beat_engine
from tuneloop.monitor.watch import Monitor
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Arm


def test_ordinary_traffic_opens_nothing(scene: Scene) -> None:
    scene.usual(60 + 5 * 20)
    state = scene.watch()
    assert (state.judged, state.alarms) == (5, 0)
    assert {score.verdict for score in scene.scores()} == {"none"}
    assert {score.verdict for score in scene.scores("perplexity")} == {"none"}
    assert scene.registry.episodes.all("bot") == []


def test_a_drift_seen_by_two_signals_opens_one_episode_that_lists_both(scene: Scene) -> None:
    scene.usual(80)
    scene.drifted(40)
    scene.watch()
    episode = scene.the_episode()
    assert set(episode.evidence["signals"]) == {"prompt_drift", "perplexity"}
    assert episode.severity == "page"
    assert len(episode.windows) == 3
    first = scene.registry.episodes.score(episode.windows[0])
    assert first.detail["window"] == 1
    assert first.statistic > first.threshold
    assert episode.evidence["signals"]["prompt_drift"]["words"][0] == {"word": "numpy", "reference": 0.0, "window": 1.0}
    assert all("numpy" in e["question"] for e in episode.evidence["signals"]["prompt_drift"]["examples"])


def test_harder_answers_alone_are_seen_in_what_users_correct(scene: Scene) -> None:
    """The same kind of questions, of which the model no longer knows the answers."""
    monitor = scene.monitor()  # one process: it remembers how the reference was scored
    scene.engine.unknown = "nobody asks this"
    scene.correct(scene.usual(80))
    scene.watch(monitor)
    assert [score.verdict for score in scene.scores("correction_perplexity")] == ["none"]
    scene.engine.unknown = ""  # every answer read from now on
    scene.correct(scene.usual(20))
    scene.watch(monitor)
    score = scene.scores("correction_perplexity")[1]
    assert score.verdict == "drift"
    assert score.detail["nats"]["window"] > score.detail["nats"]["reference"] + 3
    assert {s.verdict for s in (*scene.scores("perplexity"), *scene.scores("prompt_drift"))} == {"none"}
    episode = scene.the_episode()
    assert (episode.severity, episode.runbook) == ("ticket", "docs/runbooks/correction_perplexity.md")
    assert "the answers users want harder" in episode.evidence["summary"]
    assert episode.evidence["signals"]["correction_perplexity"]["examples"]


def test_a_backlog_of_windows_does_not_hold_the_retraining_back(scene: Scene) -> None:
    scene.usual(60)
    scene.correct(scene.drifted(6 * 20))
    scene.watch()
    (request,) = scene.requests()
    assert request.created_at < scene.scores()[1].at


def test_records_are_read_as_they_come_so_that_a_full_window_is_judged_at_once(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(40)
    assert scene.watch(monitor).judged == 0
    assert len(scene.engine.bodies) == 40, "the reference, as far as it goes"
    scene.usual(39)
    assert scene.watch(monitor).judged == 0
    assert len(scene.engine.bodies) == 79, "the rest of it, and the window as far as it goes"
    scene.usual(1)
    assert scene.watch(monitor).judged == 1
    assert len(scene.engine.bodies) == 80


def test_no_engine_reads_a_window_that_could_change_nothing(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(60)
    scene.drifted(20)
    scene.watch(monitor)
    episode, read = scene.the_episode(), len(scene.engine.bodies)
    assert set(episode.evidence["signals"]) == {"prompt_drift", "perplexity"}
    scene.drifted(30)
    scene.watch(monitor)
    assert len(scene.engine.bodies) == read, "neither the window nor the records of the next"
    score = scene.scores("perplexity")[1]
    assert score.verdict == "not enough data"
    assert f"keep {episode.id} open" in score.detail["reason"]
    scene.usual(30)  # now both signals have to go quiet
    scene.watch(monitor)
    assert [s.verdict for s in scene.scores("prompt_drift")] == ["drift", "drift", "drift", "none"]
    assert [s.verdict for s in scene.scores("perplexity")][2:] == ["not enough data", "none"]


def test_too_few_corrections_are_not_enough_data_and_say_so(scene: Scene) -> None:
    scene.correct(scene.usual(80)[:9])
    scene.watch()
    (score,) = scene.scores("correction_perplexity")
    assert score.verdict == "not enough data"
    assert score.detail["reason"] == "9 answers of the reference were corrected; 10 are needed"


def test_an_engine_away_is_not_enough_data_with_its_reason_never_a_pass(scene: Scene) -> None:
    scene.usual(80)
    scene.watch(serves=())
    (score,) = scene.scores("perplexity")
    assert score.verdict == "not enough data"
    assert "no live engine serves bot@1" in score.detail["reason"]
    assert score.p_value is None
    assert [s.verdict for s in scene.scores("prompt_drift")] == ["none"]


def test_the_budget_counts_the_streams_that_are_watched(scene: Scene) -> None:
    scene.usual(80)
    scene.watch(scene.monitor(latency_ms=500.0))
    by_signal = {score.signal: score for score in scene.registry.episodes.scores("bot")}
    qualities = {"thumbs_down", "refusals", "broken_answers", "answer_length", "injections"}
    assert set(by_signal) == {"prompt_drift", "perplexity", "correction_perplexity", "latency", *qualities}
    assert {score.mean_run_length for score in by_signal.values()} == {2_000.0}
    levels = {signal: score.detail["alpha"] for signal, score in by_signal.items()}
    assert sum(levels.values()) == pytest.approx(20 / 2_000), "all of them together spend what there is"
    assert levels["prompt_drift"] == levels["latency"] == pytest.approx(4 * levels["refusals"])


def test_what_was_scored_is_not_scored_again_by_the_next_process(scene: Scene) -> None:
    scene.usual(80)
    scene.watch()
    assert len(scene.engine.bodies) == 80
    scene.usual(20)
    scene.watch()
    assert len(scene.engine.bodies) == 100


def test_a_monitor_stopped_within_a_window_completes_it(scene: Scene) -> None:
    scene.usual(60)
    scene.drifted(20)
    scene.watch()
    with scene.registry.database.writing() as connection:  # as if killed after the first signal's score
        connection.exec_driver_sql("DELETE FROM window_scores WHERE signal = 'perplexity'")
        connection.exec_driver_sql("DELETE FROM episodes")
    scene.watch()
    assert [score.detail["window"] for score in scene.scores("perplexity")] == [0]
    assert set(scene.the_episode().evidence["signals"]) == {"prompt_drift", "perplexity"}


def test_a_database_away_cuts_passes_short_and_the_loop_goes_on(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.usual(80)
    database = Path(str(scene.registry.database.url.database))
    aside = database.with_suffix(".away")
    waits: list[float] = []
    monitor = scene.monitor()
    monitor = Monitor(scene.registry, scene.settings, monitor._scorer, monitor._metrics, lambda: len(waits) == 3)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        scene.registry.database.close()
        if len(waits) == 1:
            database.rename(aside)
            database.mkdir()
        if len(waits) == 2:
            database.rmdir()
            aside.rename(database)

    monitor.run(wait)
    assert waits == [10.0] * 3
    assert "pass cut short" in caplog.text
    text = generate_latest(monitor._metrics.collectors).decode()
    assert "tuneloop_monitor_pass_failures_total 1.0" in text
    assert len(scene.scores()) == 1


@pytest.mark.parametrize("broken", ["policy", "route"])
def test_what_goes_wrong_with_one_model_leaves_no_other_unwatched(
    scene: Scene, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    arms = [Arm(version=1, weight_bp=10_000)]
    scene.registry.routes.write("aardvark", arms, by="ada", reason="test", expected_revision=0)
    scene.registry.episodes.open(alert_episode(scene.clock(), model="aardvark"))
    with scene.registry.database.writing() as connection:
        if broken == "route":
            connection.exec_driver_sql("UPDATE routes SET arms = '[]' WHERE model = 'aardvark'")
        else:
            connection.exec_driver_sql(
                "INSERT INTO policies (model, kind, body, by, reason, at) "
                """VALUES ('aardvark', 'retraining', '{"cooldown_s": "inf"}', 'a', 'r', '2026-11-01 00:00:00')"""
            )
    scene.usual(80)
    beat_engine(scene.registry, "bot@1", url=scene.engine.url, at=scene.clock.now)
    monitor = scene.monitor()
    failed, bot = monitor.run_once()
    assert (failed.model, bot.model, bot.judged) == ("aardvark", "bot", 1)
    assert "cannot be read" in failed.failure
    assert "aardvark: this pass over it is cut short" in caplog.text
    text = generate_latest(monitor._metrics.collectors).decode()
    assert "tuneloop_monitor_last_pass_timestamp_seconds 0.0" in text  # not a whole pass: MonitorSilent will say so


def test_an_episode_that_is_over_and_cannot_be_read_leaves_nothing_unwatched(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.settings = scene.settings.model_copy(update={"canary_every_s": 60.0})
    for number, signal in enumerate(("prompt_drift", "served_model_change"), 1):
        over = alert_episode(scene.clock(), id=f"ep{number}", signal=signal, state="resolved")
        scene.registry.episodes.open(over)
    with scene.registry.database.writing() as connection:
        connection.exec_driver_sql("UPDATE episodes SET severity = 'who knows'")
    scene.watch()
    scene.usual(60)
    scene.drifted(20)
    scene.engine.moved = 0.02
    scene.clock.advance(60)
    assert scene.watch().failure == ""
    found = {episode.signal for episode in scene.registry.episodes.all("bot", open_only=True)}
    assert found == {"prompt_drift", "served_model_change"}
    assert "left out of what bot@1 has been through" in caplog.text


def test_metrics_name_champions_only(scene: Scene) -> None:
    scene.usual(60)
    scene.drifted(20)
    monitor = scene.monitor()
    metrics = monitor._metrics
    scene.watch(monitor)
    text = generate_latest(metrics.collectors).decode()
    assert 'tuneloop_drift_statistic{model="bot",signal="prompt_drift",version="1"}' in text
    assert 'tuneloop_drift_threshold{model="bot",signal="perplexity",version="1"}' in text
    assert 'tuneloop_episodes_open{model="bot",severity="page"} 1.0' in text
    assert "tuneloop_monitor_last_pass_timestamp_seconds 1.7" in text
    scene.promote(2)
    scene.watch(monitor)
    text = generate_latest(metrics.collectors).decode()
    assert not re.search(r'tuneloop_drift_\w+{.*version="1"', text)
    assert "tuneloop_episodes_open{" not in text


def test_two_monitors_at_once_judge_each_window_once_and_open_one_episode(
    registries: Registry, clock: Clock, engine: FakeEngine
) -> None:
    with httpx.Client(timeout=5, trust_env=False) as client, ThreadPoolExecutor(2) as pool:
        scene = Scene(registries, clock, engine, client)
        scene.promote(1)
        scene.usual(80)
        scene.drifted(60)
        beat_engine(registries, "bot@1", url=engine.url, at=clock.now)
        for done in [pool.submit(scene.monitor().run_once) for _ in range(2)]:
            done.result()
        scene.monitor().run_once()  # evidence one of them overwrote in the other's episode is added again
    for signal in ("prompt_drift", "perplexity"):
        assert sorted(score.detail["window"] for score in scene.scores(signal)) == [0, 1, 2, 3]
    assert set(scene.the_episode().evidence["signals"]) == {"prompt_drift", "perplexity"}
