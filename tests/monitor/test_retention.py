"""Text that has gone by its age is text that is not on record: it is said, raises nothing, and holds nothing open."""

from __future__ import annotations

import pytest

from monitor.scene import Scene
from registry.aged import retain
from tuneloop.monitor.clearing import LONGER
from tuneloop.monitor.unread import in_words
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retention_needs import warnings_of
from tuneloop.registry.retention_policy import RetentionPolicy

DAY_S = 86_400
MONTH_S = 31 * DAY_S


def blank_all_so_far(scene: Scene) -> None:
    scene.registry.policies.set("bot", RetentionPolicy(text_days=30), by="ada", reason="what the law asks for")
    scene.clock.advance(MONTH_S)
    retain(scene.registry)
    assert not any(record.question for record in scene.registry.traffic.window("bot"))


def test_a_champion_whose_reference_lost_its_text_is_judged_no_more_and_nobody_is_alarmed(scene: Scene) -> None:
    scene.usual(80)
    scene.watch()
    blank_all_so_far(scene)
    scene.usual(20)
    state = scene.watch()
    assert (state.judged, state.failure) == (0, "")
    lost = "the reference of bot@1 lost 60 of its 60 records, 60 of them only their text"
    assert state.waiting == f"{lost}; promote a version to begin a new one"
    assert scene.registry.episodes.all("bot") == []
    scene.promote(2)
    scene.usual(80, assigned_version=2, served_version=2)
    assert scene.watch(serves=("bot@2",)).judged == 1, "a new champion begins a new one"


def stopped(scene: Scene) -> dict[tuple[str, str], float]:
    """(model, reason) → what is scraped of models that are judged no more."""
    (family,) = (f for f in scene.metrics.collectors.collect() if f.name == "tuneloop_windows_stopped")
    return {(sample.labels["model"], sample.labels["reason"]): sample.value for sample in family.samples}


def test_why_no_window_is_judged_is_scraped_for_as_long_as_it_is_so(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(80)
    scene.watch(monitor, serves=())
    assert stopped(scene) == {}
    scene.usual(20, messages=())
    assert scene.watch(monitor, serves=()).stopped == "not_recorded"
    assert stopped(scene) == {("bot", "not_recorded"): 1}
    scene.usual(5)
    scene.watch(monitor, serves=())
    assert stopped(scene) == {}
    blank_all_so_far(scene)
    scene.watch(monitor, serves=())
    assert stopped(scene) == {("bot", "deleted"): 1}, "all that there is has gone, a part of it unjudged"
    scene.usual(5)
    scene.watch(monitor, serves=())
    assert stopped(scene) == {("bot", "deleted"): 1}, "a window began whose first records are gone"
    scene.usual(15)
    assert scene.watch(monitor, serves=()).judged == 1, "it holds the reference in memory"
    assert stopped(scene) == {}
    anew = scene.monitor()
    scene.watch(anew, serves=())
    assert stopped(scene) == {("bot", "reference_lost"): 1}
    assert scene.watch(anew, serves=()).failure == "", "the monitor itself is well"
    shown = in_words(scene.registry, scene.registry.routes.current("bot"))
    assert "the reference of bot@1 lost 60 of its 60 records" in shown
    scene.promote(2)
    scene.watch(anew, serves=())
    assert stopped(scene) == {}


@pytest.mark.parametrize(("days", "warned"), [(10, True), (14, True), (15, False)])
@pytest.mark.parametrize("subject", ["bot", "*"])
def test_days_that_are_too_few_for_the_windows_of_a_champion_are_warned_of(
    scene: Scene, subject: str, days: int, warned: bool
) -> None:
    scene.usual(60)
    scene.clock.advance(12 * DAY_S)
    scene.usual(10)
    scene.clock.advance(DAY_S)
    assert list(warnings_of(scene.registry, subject)) == []
    scene.usual(10)
    scene.watch(serves=())
    scene.registry.policies.set(subject, RetentionPolicy(text_days=days), by="ada", reason="test")
    found = list(warnings_of(scene.registry, subject))
    assert bool(found) is warned
    assert all("15 days suffice today" in warning and "bot@1" in warning for warning in found)
    assert list(warnings_of(scene.registry, "cat")) == []


def test_no_other_versions_reference_stands_for_one_that_lost_its_text(scene: Scene) -> None:
    """Such a champion gathers none any more: what another version was asked would be its normal for ever."""
    scene.usual(80)
    assert scene.watch().judged == 1
    scene.clock.advance(20 * DAY_S)
    scene.promote(2)
    scene.usual(80, assigned_version=2, served_version=2)
    assert scene.watch(serves=("bot@2",)).judged == 1
    scene.promote(1)
    scene.registry.policies.set("bot", RetentionPolicy(text_days=30), by="ada", reason="what the law asks for")
    scene.clock.advance(15 * DAY_S)
    retain(scene.registry)
    scene.usual(40)
    state = scene.watch()
    assert (state.judged, "the reference of bot@1 lost 60 of its 60 records" in state.waiting) == (0, True)


def test_windows_that_lost_their_text_hold_no_episode_open(scene: Scene) -> None:
    """A monitor that is running has the reference still; of the windows it looks at once more only some have text."""
    monitor = scene.monitor()
    scene.usual(60)
    scene.drifted(20)
    scene.watch(monitor)
    quiet = LONGER * scene.settings.clear_after
    scene.usual(20 * (quiet - 1))
    scene.watch(monitor)
    assert scene.the_episode().state == "open"
    blank_all_so_far(scene)
    assert scene.watch(monitor).failure == ""
    scene.usual(20)
    assert scene.watch(monitor).judged == 1
    over = scene.the_episode()
    assert (over.state, "the newest 20 questions together are like the reference's" in over.done[-1]) == (
        "resolved",
        True,
    ), over.done
    assert "(deleted)" in str(over.evidence)


def test_a_window_in_the_midst_of_which_the_monitor_ended_is_not_judged_by_what_was_blanked(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(80)
    for _ in range(2):
        scene.watch(monitor)  # it knows the reference by heart then
    with scene.registry.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM window_scores WHERE signal <> 'prompt_drift'")
    blank_all_so_far(scene)
    state = scene.watch(monitor)
    assert (state.judged, state.failure) == (0, "")
    assert scene.registry.episodes.scores("bot") == scene.scores()


@pytest.mark.parametrize(("reference_is", "text"), [("deleted", True), ("there", False)])
def test_a_retraining_that_waits_for_a_judgement_that_never_comes_is_refused_with_the_reason(
    scene: Scene, reference_is: str, text: bool
) -> None:
    scene.registry.policies.set("bot", RetrainingPolicy(min_rows=10), by="ada", reason="test")
    scene.settings = scene.settings.model_copy(update={"bad_corrections": True})
    scene.usual(60)
    scene.drifted(20)
    scene.watch(serves=())
    scene.correct(scene.drifted(19))
    scene.watch(serves=())
    held = scene.the_episode().done[-1]
    assert "no retraining yet: 0 of 10 corrections since" in held
    assert "19 came after the newest judged window of bot@1; it waits until the next window is judged" in held
    monitor = scene.monitor()
    if reference_is == "deleted":
        blank_all_so_far(scene)
    scene.correct(scene.drifted(30, **({} if text else {"messages": ()})))
    for _ in range(3):
        scene.watch(monitor, serves=())
    *_, refused = scene.the_episode().done
    why = "all without text: no window is judged" if not text else "the reference of bot@1 lost 60 of its 60 records"
    assert "retraining refused: " in refused
    assert why in refused
    assert scene.the_episode().done.count(refused) == 1
    assert scene.requests() == []
