"""A pass is whole whatever has queued up, and every model has its turn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from prometheus_client import generate_latest

from monitor.scene import Scene
from tuneloop.monitor.canary_watch import CanaryWatch
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.scorer import Scorer
from tuneloop.monitor.watch import SPEND_S, Monitor
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import Arm, Route


def route(scene: Scene, *models: str) -> None:
    for model in models:
        arms = [Arm(version=1, weight_bp=10_000)]
        scene.registry.routes.write(model, arms, by="ada", reason="test", expected_revision=0)


def monitor_of(scene: Scene, elapsed: Callable[[], float], canaries: CanaryWatch | None = None) -> Monitor:
    scorer = Scorer(scene.registry.fleet, scene.client, concurrency=2, max_tokens=2_048)
    return Monitor(scene.registry, scene.settings, scorer, Metrics(), canaries=canaries, elapsed=elapsed)


@pytest.mark.parametrize(("share", "at_once"), [(1.0, 1), (0.4, 3)])
def test_a_backlog_takes_a_bounded_part_of_a_pass_and_goes_on_in_the_next(
    scene: Scene, share: float, at_once: int
) -> None:
    """Each window takes so much of what a pass has for each of two models."""
    route(scene, "cat")
    scene.usual(60 + 4 * 20)
    scene.usual(60 + 1 * 20, model="cat")
    monitor = monitor_of(scene, count(0.0, share * SPEND_S / 2).__next__)
    states = monitor.run_once()
    assert [(state.model, state.judged, state.failure) for state in states] == [("bot", at_once, ""), ("cat", 1, "")]
    assert states[0].waiting == f"window {at_once} of bot@1 is closed and waits for the next pass"
    text = generate_latest(monitor._metrics.collectors).decode()
    assert "tuneloop_monitor_last_pass_timestamp_seconds 1.7" in text, "the pass was whole: nobody is paged"
    while scene.registry.episodes.scores("bot", signal="prompt_drift")[-1].detail["window"] < 3:
        assert monitor.run_once()[0].judged > 0
    assert monitor.run_once()[0].waiting == "window 4 of bot@1 holds 0 of 20 records"


class Away(CanaryWatch):
    """Canaries whose database goes away at the second look."""

    def __init__(self) -> None:
        self.looked: list[str] = []

    def watch(self, route: Route) -> None:
        self.looked.append(route.model)
        if len(self.looked) == 2:
            raise Unavailable("the database does not answer")


def test_a_pass_that_was_cut_short_is_followed_by_one_that_begins_where_it_was_cut(scene: Scene) -> None:
    route(scene, "cat", "dog")
    monitor = monitor_of(scene, count().__next__, away := Away())
    with pytest.raises(Unavailable):
        monitor.run_once()
    assert [state.model for state in monitor.run_once()] == ["bot", "cat", "dog"]
    monitor.run_once()
    assert away.looked == ["bot", "cat", "dog", "bot", "cat", "bot", "cat", "dog"]
