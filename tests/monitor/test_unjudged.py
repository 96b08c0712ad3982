"""A signal that is looked at and cannot be judged says for how long, and one that nobody feeds is not missed."""

from __future__ import annotations

from typing import Any

from prometheus_client import generate_latest

from monitor.scene import Scene
from tests_support import window_score
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.report.gather import gather
from tuneloop.monitor.report.page import render
from tuneloop.monitor.unjudged import Unjudged

HOUR_S = 3_600.0


def looked(scene: Scene, signal: str, verdict: str = "none", **changes: Any) -> None:
    """A window of the champion that came now."""
    name = f"ws-{signal}-{scene.clock.now.timestamp()}"
    score = window_score(scene.clock.now, id=name, signal=signal, verdict=verdict, **changes)
    assert scene.registry.episodes.add_score(score)


def shown(scene: Scene, metrics: Metrics, **changes: Any) -> dict[str, float]:
    """What Prometheus sees of `bot` after a round, in hours."""
    settings = scene.settings.model_copy(update=changes)
    Unjudged(scene.registry, settings, metrics, lambda: False).round()
    lines = generate_latest(metrics.collectors).decode().splitlines()
    prefix = 'tuneloop_signal_unjudged_seconds{model="bot",signal="'
    found = (line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix))
    return {signal: round(float(value) / HOUR_S, 2) for signal, value in found}


def test_a_signal_is_blind_from_its_last_judgement_to_its_newest_look(scene: Scene) -> None:
    metrics = Metrics()
    looked(scene, "refusals")
    looked(scene, "thumbs_down")
    looked(scene, "correction_perplexity", "not enough data")
    for _ in range(4):
        scene.clock.advance(HOUR_S)
        looked(scene, "refusals")
        looked(scene, "thumbs_down", "not enough data")
        looked(scene, "perplexity", "not enough data")
        looked(scene, "correction_perplexity", "not enough data")
    scene.clock.advance(24 * HOUR_S)  # nobody asks anything
    assert shown(scene, metrics) == {"refusals": 0, "thumbs_down": 4, "perplexity": 4}, (
        "nobody has ever corrected an answer; a perplexity needs nothing but questions"
    )
    looked(scene, "thumbs_down", "drift")
    assert shown(scene, metrics)["thumbs_down"] == 0


def test_canaries_without_a_baseline_are_blind_as_long_as_the_version_is_champion(scene: Scene) -> None:
    metrics = Metrics()
    scene.clock.advance(100 * HOUR_S)
    assert shown(scene, metrics, canary_every_s=60.0) == {"served_model_change": 100}
    assert shown(scene, metrics) == {}, "nobody asked for them"
    looked(scene, "served_model_change")  # the baseline
    scene.clock.advance(100 * HOUR_S)
    assert shown(scene, metrics, canary_every_s=60.0) == {"served_model_change": 0}, "too little traffic for a check"
    looked(scene, "served_model_change", "not enough data")
    assert shown(scene, metrics, canary_every_s=60.0) == {"served_model_change": 100}


def test_a_champion_is_not_blind_for_what_it_missed_before_it_was_champion(scene: Scene) -> None:
    looked(scene, "refusals")
    scene.clock.advance(HOUR_S)
    scene.promote(2)
    scene.clock.advance(100 * HOUR_S)
    scene.promote(1)
    scene.clock.advance(HOUR_S)
    looked(scene, "refusals", "not enough data")
    assert shown(scene, Metrics()) == {"refusals": 1}


def test_the_report_says_what_is_not_judged(scene: Scene) -> None:
    looked(scene, "refusals")
    scene.clock.advance(HOUR_S / 2)
    looked(scene, "refusals", "not enough data")
    figures = gather(scene.registry, "bot")
    assert figures.unjudged_s["refusals"] == HOUR_S / 2
    assert "<b>refusals</b> for 0.5 h" in render(figures)
