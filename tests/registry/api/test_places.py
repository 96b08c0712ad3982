"""What takes long, or reads much, has a few places; everybody else is answered meanwhile."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from registry.api.asked import BOT, WHY, path_of
from registry.api.plane import Plane, is_problem
from tests_support import beat_gateway
from tuneloop.registry.api.routing import CHANGES, REPORTS, reading_much


def test_what_takes_no_place_in_the_queue_goes_on_while_changes_wait(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway `g2` never follows: for changes time is over once the test says so, for the rollback at once."""
    over, wait_applied = threading.Event(), plane.registry.fleet.wait_applied

    def waited(model: str, revision: int, _timeout_s: float) -> list[str]:
        if revision < 3 + CHANGES:
            over.wait(25)  # the client waits no longer than half a minute
        beat_gateway(plane.registry, {"bot": 1}, id="g2")
        return wait_applied(model, revision, 0.1)

    monkeypatch.setattr(plane.registry.fleet, "wait_applied", waited)
    with ThreadPoolExecutor(CHANGES) as pool:
        waiting, deadline = [], time.monotonic() + 60
        for revision in range(3, 3 + CHANGES):
            waiting.append(pool.submit(plane.ask, "PATCH", f"{BOT}/route/overrides", json=WHY | {"keys": {"t": 2}}))
            while plane.registry.routes.current("bot").revision < revision and time.monotonic() < deadline:
                time.sleep(0.01)
        turned_away = plane.ask("PATCH", f"{BOT}/route/overrides", json=WHY | {"keys": {"t": 2}})
        assert is_problem(turned_away, "rate-limited")
        assert turned_away.headers["retry-after"] == "5"
        assert plane.get("/v1/whoami")
        before = plane.registry.routes.current("bot").revision
        taken_back = plane.ask("POST", f"{BOT}/rollback", json=WHY)
        assert is_problem(taken_back, "late"), "it is written, and the gateway that follows nothing is waited for"
        assert plane.registry.routes.current("bot").revision == before + 1
        assert not any(done.done() for done in waiting)
        over.set()
        assert {done.result().status_code for done in waiting} == {503}
    monkeypatch.undo()
    plane.registry.fleet.forget_gateway("g2")
    again = plane.ask("PATCH", f"{BOT}/route/overrides", json=WHY | {"keys": {"t": 2}})
    assert again.status_code == 200, "the places are free again"


def test_what_reads_much_has_few_places_and_keeps_nobody_else_out(plane: Plane) -> None:
    reading = (f"{BOT}/rollout", f"{BOT}/route/shadow", path_of(plane, "/v1/experiments/OVER/report"))
    with ExitStack() as others:
        for _ in range(REPORTS):
            others.enter_context(reading_much())
        for path in reading:
            turned_away = plane.ask("GET", path)
            assert is_problem(turned_away, "rate-limited"), path
            assert turned_away.headers["retry-after"] == "5"
        assert plane.get(f"{BOT}/route")
        assert plane.ask("PATCH", f"{BOT}/route/overrides", json=WHY | {"keys": {"t": 2}}).status_code == 200
    for path in reading:
        assert plane.get(path), "the places are free again"
