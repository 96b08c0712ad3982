"""A clock that was ahead blinds nobody: what it stamped waits for its time, and what it judged holds up nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from monitor.scene import Scene
from tests_support import Clock, request_record, window_score
from tuneloop.monitor.clocks import SetRight
from tuneloop.monitor.reference import score_id
from tuneloop.monitor.streams import last_scores
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Message, RequestRecord

A_DAY = 86_400.0


def from_tomorrow(scene: Scene, n: int, first: int = 9_000) -> list[RequestRecord]:
    """What a gateway whose clock is a day ahead records."""
    asked = (Message(role="user", content="How do I sort a list?"),)
    records = [
        request_record(first + k, scene.clock.now + timedelta(seconds=A_DAY + k), messages=asked) for k in range(n)
    ]
    scene.registry.traffic.add_requests(records)
    return records


@pytest.mark.parametrize("usual", [75, 55])
def test_records_with_a_time_to_come_hold_up_none_of_today_and_are_judged_once_when_it_has_come(
    scene: Scene, usual: int
) -> None:
    """They come while a window fills, or the reference itself."""
    sent = scene.usual(usual)
    ahead = from_tomorrow(scene, 10)
    scene.watch(serves=())
    sent += scene.usual(100 - usual)
    assert scene.watch(serves=()).waiting == "window 2 of bot@1 holds 0 of 20 records"
    scene.clock.advance(A_DAY + 60)
    sent += [*ahead, *scene.usual(10)]
    scene.watch(serves=())
    scores = scene.scores()
    assert scores[0].detail["reference_ids"] == [record.id for record in sent[:60]]
    assert [i for score in scores for i in score.request_ids] == [record.id for record in sent[60:]]


def test_a_window_that_an_earlier_release_judged_with_records_of_tomorrow_puts_nothing_out_of_reach(
    scene: Scene,
) -> None:
    scene.usual(80)
    scene.watch(serves=())
    tomorrow = (scene.clock.now + timedelta(days=1)).isoformat()
    with scene.registry.database.writing() as connection:
        connection.exec_driver_sql("UPDATE window_scores SET detail = json_set(detail, '$.high_water', ?)", (tomorrow,))
    scene.clock.advance(1_000)  # longer than a record may be late
    scene.usual(19)
    scene.clock.advance(1_000)
    scene.watch(serves=())
    scene.usual(1)
    assert scene.watch(serves=()).judged == 1


def test_windows_that_a_monitor_judged_while_its_clock_was_ahead_are_gone_on_from(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.monitor.windows._LOOK_BACK", 2)
    sent = scene.usual(60)
    for jump in (0, A_DAY, 0, 0, 0):
        sent += scene.usual(20)
        scene.clock.advance(jump)
        scene.watch(serves=())
        scene.clock.advance(-jump)
    scores = sorted(scene.scores(), key=lambda score: int(score.detail["window"]))
    assert [score.detail["window"] for score in scores] == [0, 1, 2, 3, 4]
    assert [i for score in scores for i in score.request_ids] == [record.id for record in sent[60:]]


def test_a_canary_check_made_while_the_clock_was_ahead_holds_up_no_other(scene: Scene) -> None:
    scene.settings = scene.settings.model_copy(update={"canary_every_s": 60.0})
    monitor = scene.monitor()
    scene.watch(monitor)  # freezes the baseline
    for jump in (0, A_DAY, 0, 0):
        scene.usual(20)
        scene.clock.advance(60 + jump)
        scene.watch(monitor)
        scene.clock.advance(-jump)
    scene.usual(20)
    scene.clock.advance(60)
    scene.engine.moved = 0.02
    scene.watch(monitor)
    checks = sorted(scene.scores("served_model_change"), key=lambda score: int(score.detail["window"]))[1:]
    assert [score.verdict for score in checks] == ["none", "none", "none", "drift"]
    assert sum(score.n for score in checks) <= scene.sent, "no record earns two checks their level"
    assert all(score.window_start <= score.window_end for score in checks)


def test_a_reading_that_ends_in_the_future_ends_when_it_was_seen_first(clock: Clock) -> None:
    set_right, ends = SetRight(clock), clock() + timedelta(days=1)
    score, seen = window_score(clock(), window_end=ends), clock()
    assert set_right(score).window_end == seen
    clock.advance(60)
    assert set_right(score).window_end == seen
    assert set_right(window_score(clock(), id="w2", window_end=ends)).window_end == clock()
    clock.advance(A_DAY)
    assert set_right(score) == score
    backwards = window_score(clock(), window_end=clock() - timedelta(days=1))
    assert set_right(backwards).window_end == clock(), "what was answered in that day earned its level before"


@pytest.mark.parametrize("jump_s", [A_DAY, -A_DAY])
def test_the_last_of_a_stream_is_the_last_judged_whatever_clocks_said(
    registries: Registry, clock: Clock, jump_s: float
) -> None:
    """Of 40, five were judged while the clock had jumped; the time they are said to be of comes and goes."""
    for number in range(40):
        at = clock() + timedelta(seconds=jump_s if 10 <= number < 15 else 0)
        name = score_id("bot", 1, "prompt_drift", number)
        registries.episodes.add_score(window_score(at, id=name, detail={"window": number}))
        if number in (0, 9, 10, 14, 15, 25, 36, 39):
            last = last_scores(registries, "bot", 1, "prompt_drift", 3)
            assert [score.detail["window"] for score in last] == list(range(max(0, number - 2), number + 1))
        clock.advance(3_600)
    assert last_scores(registries, "bot", 2, "prompt_drift", 3) == []
