"""References freeze, and every record is judged once: over restarts, late arrivals, repeats and changes of champion."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from unittest.mock import Mock

import pytest

from monitor.scene import Scene
from tests_support import request_record, statements
from tuneloop.monitor import watch
from tuneloop.monitor.reference import ANCHOR, find_reference, score_id
from tuneloop.monitor.watch import Monitor
from tuneloop.monitor.windows import Window
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import WindowScore


def judged_ids(scores: list[WindowScore]) -> list[str]:
    return [request_id for score in scores for request_id in score.request_ids]


def test_nothing_is_judged_before_the_reference_is_complete(scene: Scene) -> None:
    scene.usual(59)
    state = scene.watch()
    assert state.judged == 0
    assert state.waiting == "the reference of bot@1 holds 59 of 60 answered records"
    scene.usual(20)
    assert scene.watch().waiting == "window 0 of bot@1 holds 19 of 20 records"
    scene.usual(1)
    assert scene.watch().judged == 1


def test_a_window_that_time_has_closed_is_judged_at_the_level_its_records_earn(scene: Scene) -> None:
    scene.usual(60)
    scene.watch()
    slow = scene.monitor(window_s=7_200)
    first = scene.usual(9)[0]
    closes = first.at + timedelta(seconds=7_200)
    assert scene.watch(slow).waiting == (
        f"window 0 of bot@1 holds 9 of 20 records; from {closes:%Y-%m-%d %H:%M:%S}Z on 10 are enough"
    )
    scene.clock.now = closes
    assert scene.watch(slow).judged == 0, "nine are too few, however old"
    late = scene.usual(3)
    assert scene.watch(slow).judged == 1
    (score,) = scene.scores()
    assert len(score.request_ids) == 12
    scene.usual(20)
    assert scene.watch(slow).judged == 1, "a full one does not wait"
    short, full = (one.detail["alpha"] for one in scene.scores())
    assert short == pytest.approx(full * 12 / 20)
    assert late[-1].id in score.request_ids
    assert scene.scores()[1].request_ids[0] not in score.request_ids


def test_what_another_monitor_has_cut_elsewhere_is_completed_as_that_one_cut_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.usual(60)
    first = scene.usual(12)
    scene.clock.advance(86_400)
    with monkeypatch.context() as patched:
        patched.setattr(scene.registry.episodes, "add_score", only(ANCHOR, scene.registry.episodes.add_score))
        with pytest.raises(Unavailable):
            scene.watch(scene.monitor(window_s=86_400))  # killed after its first judgement
    late = request_record(9_999, first[3].at, messages=first[3].messages)
    scene.registry.traffic.add_requests([late])
    cut = Window(0, tuple(sorted((*first, late), key=lambda record: record.at)), 13, first[-1].at)
    with monkeypatch.context() as patched:  # the other had cut before that was stored
        patched.setattr(watch, "next_window", cuts := Mock(side_effect=[cut, ()]))
        patched.setattr(Monitor, "_finish_last", lambda *_: None)
        assert scene.watch(scene.monitor(window_s=86_400)).judged == 0
        assert cuts.call_count == 1, "what comes after it is not known yet"
    assert scene.scores("refusals") == []
    scene.watch(scene.monitor(window_s=86_400))
    assert scene.scores("refusals")[0].request_ids == scene.scores()[0].request_ids
    assert late.id not in scene.scores()[0].request_ids


def only(signal: str, add: Callable[[WindowScore], bool]) -> Callable[[WindowScore], bool]:
    """A store that takes this signal's judgements alone."""

    def added(score: WindowScore) -> bool:
        if score.signal != signal:
            raise Unavailable("killed")
        return add(score)

    return added


def test_a_time_that_has_closed_a_window_sees_a_whole_change_in_it(scene: Scene) -> None:
    scene.usual(60)
    scene.drifted(14)
    scene.clock.advance(86_400)
    assert scene.watch().judged == 0, "without a longest time it waits for twenty"
    scene.watch(scene.monitor(window_s=86_400))
    assert scene.the_episode().signal == "prompt_drift"


def test_the_reference_is_the_first_records_and_stays_so_whatever_arrives_late(scene: Scene) -> None:
    first = scene.usual(80)
    scene.watch()
    frozen = scene.scores()[0].detail
    assert frozen["reference_ids"] == [record.id for record in first[:60]]
    late = request_record(9_999, first[3].at + timedelta(milliseconds=1), messages=first[3].messages)
    scene.registry.traffic.add_requests([late])
    scene.usual(20)
    scene.watch(scene.monitor(reference=40))
    assert [score.detail["reference"] for score in scene.scores()] == [frozen["reference"]] * 2
    assert late.id in scene.scores()[1].request_ids, "a late record joins the next window"


def test_a_reference_that_lost_records_is_said_not_replaced(scene: Scene) -> None:
    scene.usual(30)
    scene.clock.advance(5 * 3_600)
    scene.usual(50)
    scene.watch()
    with scene.registry.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM requests WHERE id = 'req-5'")
    scene.usual(20)
    state = scene.watch()
    assert state.judged == 0
    assert "lost 1 of its 60 records" in state.waiting
    with statements(scene.registry) as asked:
        find_reference(scene.registry, scene.registry.routes.history("bot"), 1, 60)
    assert sum("FROM requests" in statement for statement in asked) == 1, "not one for each hour of it"


def test_refused_cut_off_and_textless_requests_are_no_part_of_it(scene: Scene) -> None:
    for n in range(70):
        scene.usual(1)
        scene.usual(1, status=503, served_version=None if n % 2 else 1)
        scene.usual(1, messages=())
        scene.usual(1, served_version=2)
    state = scene.watch()
    assert state.waiting == "window 0 of bot@1 holds 10 of 20 records"


def test_each_record_is_judged_once_over_restarts_and_replayed_spools(scene: Scene) -> None:
    sent = []
    for n in (65, 7, 30, 1, 41, 20):
        records = scene.usual(n)
        scene.registry.traffic.add_requests(records)  # the same batch again
        sent += records
        scene.watch()
    for signal in ("prompt_drift", "perplexity"):
        scores = scene.scores(signal)
        assert [score.detail["window"] for score in scores] == list(range(5))
        assert judged_ids(scores) == [record.id for record in sent[60:160]]
        assert [score.id for score in scores] == [score_id("bot", 1, signal, k) for k in range(5)]


def test_looking_back_is_bounded_and_still_exact(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.monitor.windows._LOOK_BACK", 2)
    sent = scene.usual(60)
    for _ in range(6):
        sent += scene.usual(20)
        scene.watch(serves=())
    scores = scene.scores()
    assert judged_ids(scores) == [record.id for record in sent[60:]]


def test_a_record_later_than_late_s_is_left_out(scene: Scene) -> None:
    first = scene.usual(80)
    scene.watch()
    scene.usual(100)
    monitor = scene.monitor(late_s=10)
    scene.watch(monitor)
    scene.registry.traffic.add_requests([request_record(9_999, first[70].at + timedelta(milliseconds=1))])
    scene.usual(20)
    scene.watch(monitor)
    assert "req-9999" not in judged_ids(scene.scores())


def test_a_new_champion_has_its_own_reference_from_when_it_took_over(scene: Scene) -> None:
    scene.usual(80)
    scene.drifted(20)
    scene.drifted(30, served_version=2)  # a canary: not yet champion
    scene.watch()
    scene.promote(2)
    after = scene.drifted(80, served_version=2)
    state = scene.watch(serves=("bot@2",))
    assert (state.version, state.judged, state.alarms) == (2, 1, 0)
    (score,) = scene.scores(version=2)
    assert score.detail["reference_ids"] == [record.id for record in after[:60]]


def test_a_champion_that_returns_goes_on_with_its_old_reference_and_new_traffic(scene: Scene) -> None:
    scene.usual(80)
    scene.watch()
    scene.promote(2)
    scene.drifted(20, served_version=1)  # what an old champion still answers is nobody's window
    scene.promote(1)
    back = scene.usual(20)
    scene.watch()
    first, second = scene.scores()
    assert second.detail["reference"] == first.detail["reference"]
    assert second.request_ids == tuple(record.id for record in back)
