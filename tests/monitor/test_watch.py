"""Watching: windows are judged once, one problem is one episode, and it ends when it is over."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest

from monitor.engine import FakeEngine
from monitor.scene import Scene
from tests_support import Clock, alert_episode, beat_engine, window_score
from tuneloop.monitor.alerts import takes
from tuneloop.monitor.clearing import is_quiet
from tuneloop.monitor.slo import Slo
from tuneloop.monitor.watch import Monitor
from tuneloop.registry import Registry
from tuneloop.registry.deliveries.outbox import Outbox
from tuneloop.registry.deliveries.receivers import EVERY_MODEL, ReceiversPolicy, Webhook
from tuneloop.registry.episodes import resolved
from tuneloop.registry.nouns import AlertEpisode, Arm

TOLD = ReceiversPolicy(receivers=(Webhook(kind="webhook", name="ops", url="http://127.0.0.1:9", secret_file="/key"),))


def the_episode(scene: Scene) -> AlertEpisode:
    """The only episode there is."""
    (episode,) = scene.registry.episodes.all("bot")
    return episode


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
    episode = the_episode(scene)
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
    episode = the_episode(scene)
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
    episode, read = the_episode(scene), len(scene.engine.bodies)
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


def test_an_episode_clears_only_after_enough_quiet_windows(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(60)
    scene.drifted(20)
    scene.watch(monitor)
    for _ in range(3):
        scene.usual(20)
        scene.watch(monitor)
        assert the_episode(scene).state == "open"
    scene.usual(20)
    scene.watch(monitor)
    episode = the_episode(scene)
    assert episode.state == "resolved"
    assert "4 windows in a row without an alarm; the newest 80 questions together are like" in episode.done[-1]


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
    episode = the_episode(scene)
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
    assert the_episode(scene).windows[-1] == scene.scores()[-1].id
    told = [delivery.transition for delivery in Outbox(scene.registry.database).all()]
    assert told.count("opened") == 1
    assert "resolved" not in told


def test_windows_without_enough_data_clear_nothing(scene: Scene) -> None:
    scene.usual(60)
    scene.drifted(20)
    scene.watch()
    assert "perplexity" in the_episode(scene).evidence["signals"]
    scene.usual(80)
    scene.watch(serves=())
    assert [s.verdict for s in scene.scores("perplexity")][1:] == ["not enough data"] * 4
    assert the_episode(scene).state == "open"


def harder_to_answer(scene: Scene, monitor: Monitor) -> None:
    """Users ask the same kind of questions, of which the model no longer knows the answers."""
    scene.engine.unknown = "nobody asks this"
    scene.correct(scene.usual(60))
    scene.watch(monitor)
    scene.engine.unknown = ""  # every answer read from now on
    scene.correct(scene.usual(20))
    scene.watch(monitor)
    assert list(the_episode(scene).evidence["signals"]) == ["correction_perplexity"]


def test_users_who_stop_correcting_hold_up_no_all_clear_that_another_signal_gives(scene: Scene) -> None:
    monitor = scene.monitor()
    harder_to_answer(scene, monitor)
    scene.drifted(20)
    scene.watch(monitor)
    assert "prompt_drift" in the_episode(scene).evidence["signals"]
    scene.usual(60)
    scene.watch(monitor)
    assert the_episode(scene).state == "open"
    scene.usual(20)
    scene.watch(monitor)
    episode = the_episode(scene)
    assert episode.state == "resolved"
    assert "too little feedback since to judge correction_perplexity by" in episode.done[-1]


def test_silence_alone_gives_no_all_clear(scene: Scene) -> None:
    monitor = scene.monitor()
    harder_to_answer(scene, monitor)
    scene.usual(100)
    scene.watch(monitor)
    assert the_episode(scene).state == "open"


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
    assert (the_episode(scene).signal, the_episode(scene).state) == (signal, "open")
    scene.watch()
    assert the_episode(scene).state == "resolved"
    assert the_episode(scene).done[-1].endswith("none of its signals is watched any more")


def test_a_signal_that_is_no_longer_watched_holds_up_no_all_clear(scene: Scene) -> None:
    scene.usual(60, total_ms=100.0)
    scene.drifted(20, total_ms=900.0)
    scene.watch(scene.monitor(latency_ms=500.0))
    assert "latency" in the_episode(scene).evidence["signals"]
    scene.usual(80)
    scene.watch()
    assert "4 windows in a row" in the_episode(scene).done[-1]


def test_answers_no_longer_kept_hold_up_no_all_clear_that_another_signal_gives(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(60)
    scene.drifted(20, answer="")
    scene.watch(monitor)
    assert "broken_answers" in the_episode(scene).evidence["signals"]
    scene.usual(80, answer=None)
    scene.watch(monitor)
    assert the_episode(scene).state == "resolved"
    assert "too little text since to judge broken_answers by" in the_episode(scene).done[-1]


def test_a_person_who_resolves_an_episode_is_not_overruled_by_the_same_window(scene: Scene) -> None:
    scene.usual(60)
    scene.drifted(20)
    scene.watch()
    episode = the_episode(scene)
    over = resolved(episode, "known", scene.clock())
    scene.registry.episodes.update(episode, over, by="ada", action="episode.resolve")
    scene.watch()
    assert the_episode(scene).state == "resolved"
    scene.drifted(20)
    scene.watch()
    states = sorted(found.state for found in scene.registry.episodes.all("bot"))
    assert states == ["open", "resolved"], "a new window that drifts is a new sight of it"


def test_what_is_seen_together_is_one_episode_and_pages_when_one_of_it_does(scene: Scene) -> None:
    scene.usual(60, total_ms=100.0, ttft_ms=20.0)
    scene.drifted(20, total_ms=100.0, ttft_ms=900.0)
    scene.watch(scene.monitor(latency_ms=500.0, ttft_ms=200.0))
    episode = the_episode(scene)
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
    scene.drifted(20, total_ms=100.0, ttft_ms=900.0)
    scene.watch(monitor)
    drift, latency = sorted(scene.registry.episodes.all("bot"), key=lambda found: found.signal, reverse=True)
    assert set(drift.evidence["signals"]) == {"prompt_drift", "perplexity"}
    assert (latency.signal, latency.severity, latency.runbook) == ("latency", "page", "docs/runbooks/latency.md")
    assert latency.evidence["signals"]["latency"]["engines"] == {"e1": [20, 20]}


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
    assert (the_episode(scene).signal, the_episode(scene).severity) == ("latency", "ticket")


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
    assert set(the_episode(scene).evidence["signals"]) == {"prompt_drift", "perplexity"}


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
    assert set(the_episode(scene).evidence["signals"]) == {"prompt_drift", "perplexity"}
