"""A user who asks to be deleted is in no reference any more, also not in a running monitor's, and ends no watch."""

from __future__ import annotations

import pytest

from monitor.scene import Scene
from tuneloop.monitor.watch import Monitor
from tuneloop.registry.forgetting import hash_of

ADA = hash_of("ada")


def delete_ada(scene: Scene) -> None:
    found = scene.registry.traffic.forget("ada", at=scene.clock(), by="ada", reason="she asked for it")
    assert found.requests > 0


def held_by(monitor: Monitor) -> set[str]:
    """Who asked what a monitor compares with, of all champions."""
    return {record.key_hash for known in monitor._standards._known.values() for record in known.records}


@pytest.mark.parametrize("restarts", [False, True])
def test_what_a_user_asked_leaves_the_reference_and_the_watch_goes_on(scene: Scene, restarts: bool) -> None:
    monitor = scene.monitor()
    scene.usual(1, key_hash=ADA)
    scene.usual(58)
    scene.usual(1, key_hash=ADA)
    scene.usual(20)
    scene.watch(monitor)
    scene.watch(monitor)
    assert ADA in held_by(monitor)
    before = scene.scores()[0].detail["reference"]
    delete_ada(scene)
    read = len(scene.engine.bodies)
    monitor = scene.monitor() if restarts else monitor
    scene.watch(monitor)
    assert held_by(monitor)
    assert ADA not in held_by(monitor), "gone with the next pass, whether or not a window is judged"
    assert len(scene.engine.bodies) == read, "what is left of it was read before"
    scene.drifted(20)
    assert scene.watch(monitor).judged == 1
    after = scene.scores()[1].detail["reference"]
    assert (after["digest"], after["n"], after["deleted"]) == (before["digest"], 58, 2)
    assert "deleted" not in before
    assert scene.the_episode().evidence["reference"] == after, "who reads the page sees it"


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(("deleted", "goes_on"), [(30, True), (31, False)])
def test_half_of_a_reference_is_enough(scene: Scene, restarts: bool, deleted: int, goes_on: bool) -> None:
    monitor = scene.monitor()
    scene.usual(deleted, key_hash=ADA)
    scene.usual(80 - deleted)
    scene.watch(monitor)
    scene.watch(monitor)
    delete_ada(scene)
    monitor = scene.monitor() if restarts else monitor
    scene.usual(20)
    state = scene.watch(monitor)
    assert state.judged == goes_on
    assert ADA not in held_by(monitor)
    why = "of the 60 records of the reference of bot@1 31 were deleted with their users, and it takes 30; promote a"
    assert state.waiting.startswith(why) != goes_on


def test_what_was_lost_otherwise_besides_is_lost(scene: Scene) -> None:
    scene.usual(1, key_hash=ADA)
    scene.usual(79)
    scene.watch()
    delete_ada(scene)
    with scene.registry.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM requests WHERE id = 'req-5'")
    scene.usual(20)
    state = scene.watch()
    assert (state.judged, "lost 2 of its 60 records" in state.waiting) == (0, True)


def test_an_earlier_champions_reference_lends_what_is_left_of_it(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.usual(1, key_hash=ADA)
    scene.usual(79)
    scene.watch(monitor)
    scene.promote(2)
    scene.usual(20, assigned_version=2, served_version=2)
    scene.watch(monitor, serves=("bot@2",))
    delete_ada(scene)
    scene.usual(20, assigned_version=2, served_version=2)
    assert scene.watch(monitor, serves=("bot@2",)).judged == 1
    assert ADA not in held_by(monitor)
    said = [score.detail["reference"] for score in scene.scores("refusals", 2)]
    assert [(one["n"], one.get("deleted")) for one in said] == [(60, None), (59, 1)]
