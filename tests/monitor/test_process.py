"""The monitor as a process: killed at any moment it loses and doubles nothing, and it ends in order when asked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from monitor.engine import FakeEngine
from monitor.questions import NUMPY, STDLIB, ask
from tests_support import beat_engine, request_record
from tuneloop.monitor.canaries import BASELINE_ROUNDS, canaries
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Arm, Feedback, Message, WindowScore
from tuneloop.registry.policies import RetrainingPolicy

RUN = [sys.executable, "-c", "from tuneloop.monitor.verbs import monitor; monitor()"]
WINDOW, REFERENCE = 20, 40


class Live:
    """`bot@1` with traffic on the real clock, and monitors as separate processes."""

    def __init__(self, registry: Registry, engine: FakeEngine) -> None:
        self.registry = registry
        self.sent = 0
        self.rng = random.Random(23)
        self.started: list[subprocess.Popen[str]] = []
        arms = [Arm(version=1, weight_bp=10_000)]
        registry.routes.write("bot", arms, by="ada", reason="test", expected_revision=0)
        registry.policies.set("bot", RetrainingPolicy(min_rows=5), by="ada", reason="test")
        beat_engine(registry, "bot@1", url=engine.url, at=registry.clock() + timedelta(hours=1))
        self.begun = registry.clock()

    def traffic(self, modules: tuple[str, ...], n: int, *, corrected: bool = False) -> None:
        records = []
        for question in ask(modules, n, self.rng):
            self.sent += 1
            at = self.begun + timedelta(milliseconds=self.sent)
            records.append(request_record(self.sent, at, messages=(Message(role="user", content=question),)))
        self.registry.traffic.add_requests(records)
        if corrected:
            given = [Feedback(id=f"f-{r.id}", request_id=r.id, at=r.at, correction="It adds.") for r in records]
            self.registry.traffic.add_feedback(given)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        settings = {"HOME": str(self.registry.settings.home), "MONITOR_WINDOW": str(WINDOW)}
        settings |= {"MONITOR_REFERENCE": str(REFERENCE), "MONITOR_MEAN_RUN_LENGTH": "2000", "MONITOR_EVERY_S": "0.05"}
        settings |= {"MONITOR_CANARY_EVERY_S": "0"}  # what is counted and delayed here is the reading of records
        environment = os.environ | {f"TUNELOOP_{name}": value for name, value in (settings | variables).items()}
        process = subprocess.Popen([*RUN, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()

    def judged(self) -> int:
        return len(self.registry.episodes.scores("bot"))

    def baselines(self) -> Sequence[WindowScore]:
        return self.registry.episodes.scores("bot", signal="served_model_change")

    def has_judged(self, scores: int) -> bool:
        return self.judged() >= scores


@pytest.fixture
def live(registry: Registry, engine: FakeEngine) -> Iterator[Live]:
    made = Live(registry, engine)
    yield made
    made.end()


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_a_monitor_killed_again_and_again_judges_and_files_everything_once(live: Live) -> None:
    live.traffic(STDLIB, REFERENCE + WINDOW)
    for round_ in range(3):
        live.traffic(NUMPY, 2 * WINDOW, corrected=True)
        process = live.start()
        # After one, two or three scores: between signals, windows, opening, noting and filing.
        wanted = live.judged() + round_ + 1
        until(partial(live.has_judged, wanted))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert live.start("--once").wait(timeout=60) == 0
    everything = [f"req-{n}" for n in range(REFERENCE + 1, live.sent + 1)]
    for name in ("prompt_drift", "perplexity"):
        scores = live.registry.episodes.scores("bot", signal=name)
        assert [request_id for score in scores for request_id in score.request_ids] == everything
    (episode,) = live.registry.episodes.all("bot")
    assert set(episode.evidence["signals"]) == {"prompt_drift", "perplexity"}
    (request,) = live.registry.retraining.all("bot")
    assert request.episode_id == episode.id
    filings = [entry for entry in live.registry.audit.entries(request.id) if entry.action == "retraining.file"]
    assert len(filings) == 1


def test_it_is_scraped_and_ends_in_order_on_sigterm(live: Live, free: int) -> None:
    live.traffic(STDLIB, REFERENCE + WINDOW)
    process = live.start(MONITOR_METRICS_PORT=str(free))
    until(partial(live.has_judged, 2))
    with urllib.request.urlopen(f"http://127.0.0.1:{free}/metrics") as page:
        text = page.read().decode()
    assert 'tuneloop_drift_threshold{model="bot",signal="prompt_drift",version="1"}' in text
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 0
    assert "SIGTERM: ending" in errors
    assert "Traceback" not in errors


def test_told_to_end_while_an_engine_scores_it_ends_soon_and_concludes_nothing(live: Live, engine: FakeEngine) -> None:
    engine.delay_s = 1.0  # sixty questions, two at a time: half a minute
    live.traffic(STDLIB, REFERENCE + WINDOW)
    process = live.start()
    until(lambda: bool(engine.bodies))
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - asked < 15
    assert [score.signal for score in live.registry.episodes.scores("bot")] == ["prompt_drift"]
    engine.delay_s = 0.0
    assert live.start("--once").wait(timeout=60) == 0
    assert [score.verdict for score in live.registry.episodes.scores("bot", signal="perplexity")] == ["none"]


def test_windows_are_judged_while_a_baseline_of_canaries_is_read_and_a_kill_in_its_midst_costs_but_the_reading(
    live: Live, engine: FakeEngine
) -> None:
    go_on, asked = threading.Event(), threading.Event()

    def busy(_name: str, question: str) -> float:
        if question in canaries():
            asked.set()
            go_on.wait(60)
        return 0.0

    engine.more = busy
    live.traffic(STDLIB, REFERENCE + WINDOW)
    process = live.start(MONITOR_CANARY_EVERY_S="300")
    until(lambda: asked.is_set() and live.has_judged(2))
    assert live.baselines() == []
    process.kill()
    process.wait()
    go_on.set()
    assert live.start("--once", MONITOR_CANARY_EVERY_S="300").wait(timeout=60) == 0
    assert [(score.n, score.verdict) for score in live.baselines()] == [(BASELINE_ROUNDS, "none")]


def test_a_taken_metrics_port_is_one_clear_error(live: Live, free: int, tmp_path: Path) -> None:
    live.start(MONITOR_METRICS_PORT=str(free))
    live.traffic(STDLIB, REFERENCE + WINDOW)
    until(partial(live.has_judged, 2))
    second = live.start(MONITOR_METRICS_PORT=str(free))
    errors = second.communicate(timeout=60)[1]
    assert second.returncode != 0
    assert f"metrics port 127.0.0.1:{free}: Address already in use; choose another metrics_port" in errors
