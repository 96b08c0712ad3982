"""What Prometheus scrapes is of what is watched now: a version that left takes everything of its own along."""

from __future__ import annotations

from prometheus_client import generate_latest

from tests_support import Clock, window_score
from tuneloop.monitor.metrics import Metrics


def lines_of(metrics: Metrics, label: str) -> list[str]:
    lines = generate_latest(metrics.collectors).decode().splitlines()
    return sorted(line.partition("{")[0] for line in lines if label in line)


def test_a_version_or_a_model_that_left_takes_its_labels_along(clock: Clock) -> None:
    metrics, now = Metrics(), clock()
    for model, version in (("bot", 1), ("bot", 2), ("kit", 1)):
        metrics.judged(window_score(now, model=model, version=version, request_ids=("r1",)), now)
    metrics.compared(window_score(now, version=3, signal="trial_refusals"))
    kept = lines_of(metrics, 'version="2"')
    assert kept == [
        *("tuneloop_drift_statistic", "tuneloop_drift_threshold"),
        *("tuneloop_windows_judged_created", "tuneloop_windows_judged_total"),
    ]
    metrics.only({"bot": 2}, {"bot": {2, 3}})
    assert lines_of(metrics, 'version="2"') == kept
    assert lines_of(metrics, 'version="3"') == kept, "a challenger is in the route"
    assert lines_of(metrics, 'model="bot",signal="prompt_drift",version="1"') == []
    assert lines_of(metrics, 'version="1"') == lines_of(metrics, 'model="kit"') == []
    assert lines_of(metrics, "tuneloop_monitor_lag_seconds{") == ["tuneloop_monitor_lag_seconds"]
