"""Traffic that is recorded without text: it is said that nothing is judged, and little is read to find that out."""

from __future__ import annotations

import pytest

from monitor.scene import Scene
from tests_support import statements
from tuneloop.monitor.watch import Monitor


def reads(scene: Scene, monitor: Monitor) -> tuple[str, int]:
    """What a pass says it waits for, and how often it read requests."""
    with statements(scene.registry) as asked:
        waiting = scene.watch(monitor, serves=()).waiting
    return waiting, sum("FROM requests" in statement for statement in asked)


@pytest.mark.parametrize("season_days", [0, 1])
def test_it_is_said_once_that_no_window_is_judged_and_each_pass_reads_a_few_records(
    scene: Scene, caplog: pytest.LogCaptureFixture, season_days: int
) -> None:
    scene.usual(300, messages=())
    scene.clock.advance(2 * 86_400)
    scene.usual(30, messages=())
    monitor = scene.monitor(season_days=season_days)
    waiting, first = reads(scene, monitor)
    assert "all without text: no window is judged" in waiting
    assert first == 2, "what there may be of a reference, and the newest few"
    scene.usual(30, messages=())
    assert reads(scene, monitor) == (waiting, 1)
    assert caplog.text.count("no window is judged") == 1


def test_text_that_is_switched_off_later_leaves_what_was_recorded_with_it_judged_and_is_gone_on_from(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    sent = scene.usual(60 + 20 + 15)
    scene.usual(300, messages=())
    monitor = scene.monitor()
    state = scene.watch(monitor, serves=())
    assert (state.judged, "all without text" in state.waiting) == (1, True)
    assert [reads(scene, monitor)[1] for _ in range(2)] == [1, 1]
    sent += scene.usual(5)
    state = scene.watch(monitor, serves=())
    assert (state.judged, state.waiting) == (1, "window 2 of bot@1 holds 0 of 20 records")
    assert scene.scores()[1].request_ids == tuple(record.id for record in sent[-20:])
    scene.usual(30, messages=())
    scene.watch(monitor, serves=())
    assert caplog.text.count("no window is judged") == 2, "it was so twice"


def test_canaries_are_watched_without_text(scene: Scene) -> None:
    scene.settings = scene.settings.model_copy(update={"canary_every_s": 60.0})
    monitor = scene.monitor()
    scene.watch(monitor)
    for _ in range(2):
        scene.usual(40, messages=())
        scene.clock.advance(60)
        scene.watch(monitor)
        scene.engine.moved = 0.02
    assert [score.verdict for score in scene.scores("served_model_change")[1:]] == ["none", "drift"]


def test_a_clock_that_was_ahead_does_not_make_a_model_textless(scene: Scene) -> None:
    scene.usual(70)
    scene.clock.advance(86_400)
    scene.usual(25, messages=())
    scene.clock.advance(-86_400)
    monitor = scene.monitor()
    scene.watch(monitor, serves=())
    scene.usual(10)
    assert scene.watch(monitor, serves=()).judged == 1
