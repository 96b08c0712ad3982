"""What survives a worker that dies, or loses its lease."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from train.worker.crew import filed, run_states, worker
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Feedback, GateReport, RetrainingRequest, RetrainingState, Version
from tuneloop.train.retraining.worker import Worker
from tuneloop.train.screen import Screen
from tuneloop.train.settings import WorkerSettings
from tuneloop.train.stopping import StopFlag


class _Dies(Worker):
    """A worker that is gone right after publishing, before it could judge or finish."""

    def _report(self, version: Version, request: RetrainingRequest) -> GateReport:
        raise KeyboardInterrupt(f"{version.name} is published, {request.id} is not finished")


def test_death_after_publishing_leads_to_one_version_judged_by_the_next_worker(
    registry: Registry, request_waiting: RetrainingRequest
) -> None:
    dying = _Dies(
        registry,
        WorkerSettings(id="dying", lease_s=1.0),
        threads=0,
        screen=Screen(io.StringIO()),
        stop=StopFlag(),
    )
    with pytest.raises(KeyboardInterrupt):
        dying.run_once()
    assert registry.retraining.get(request_waiting.id).state is RetrainingState.RUNNING
    time.sleep(1.2)  # the dead worker's lease runs out on the real clock
    done = worker(registry).run_once()
    assert done is not None
    assert done.state in {RetrainingState.GATED, RetrainingState.REJECTED}
    assert (done.attempts, done.result_version) == (2, 2)
    assert [version.version for version in registry.versions.all("bot")] == [2, 1]
    assert registry.gates.latest("bot", 2) is not None


def test_a_lost_lease_stops_the_run_and_publishes_nothing(
    registry: Registry, champion: Version, request_waiting: RetrainingRequest, tiny_recipe: Path
) -> None:
    long = tiny_recipe.with_name("long.yaml")
    often = tiny_recipe.read_text().replace("run: {", "run: {checkpoint: {every_s: 1.0e-9}, ")
    long.write_text(often.replace("retrain: {steps: 4", "retrain: {steps: 100000"))
    registry.retraining.cancel(request_waiting.id, by="test", reason="make room")
    window = {"window_start": request_waiting.window_start, "window_end": request_waiting.window_end}
    request = filed(registry, idempotency_key="long", recipe=str(long), **window)
    states: list[RetrainingState] = []

    def work() -> None:
        done = worker(registry, lease_s=1.0).run_once()
        assert done is not None
        states.append(done.state)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for(lambda: len(run_states(registry)) == 2, 120)
    registry.retraining.cancel(request.id, by="test", reason="changed my mind")
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert states == [RetrainingState.CANCELLED]
    assert run_states(registry) == ["FINISHED", "KILLED"]
    assert list((registry.settings.home / "runs").iterdir()) == [], "nobody goes on with a request that is over"
    assert [version.version for version in registry.versions.all("bot")] == [1]


@pytest.fixture
def worker_process(registry_home: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    code = """
import os, signal
from tuneloop.train.fit.checkpoints import CheckpointStore
from tuneloop.train.verbs import worker

seal = CheckpointStore.seal

def dies(self, written, state, best_step=None):
    made = seal(self, written, state, best_step)
    if state.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return made

CheckpointStore.seal = dies
worker(["--once"])
"""

    def start() -> subprocess.Popen[str]:
        environment = os.environ | {
            "TUNELOOP_HOME": str(registry_home),
            "TUNELOOP_WORKER_LEASE_S": "2",
            "TUNELOOP_TRAIN_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_kill_9_in_the_middle_of_training_costs_nothing_but_time(
    registry_home: Path,
    tiny_recipe: Path,
    request_waiting: RetrainingRequest,
    registry: Registry,
    worker_process: Callable[[], subprocess.Popen[str]],
) -> None:
    often = tiny_recipe.with_name("often.yaml")
    often.write_text(tiny_recipe.read_text().replace("run: {", "run: {checkpoint: {every_s: 1.0e-9}, "))
    registry.retraining.cancel(request_waiting.id, by="test", reason="make room")
    window = {"window_start": request_waiting.window_start, "window_end": request_waiting.window_end}
    request = filed(registry, idempotency_key="killed", recipe=str(often), **window)
    first = worker_process()
    said, _ = first.communicate(timeout=120)
    assert first.returncode == -signal.SIGKILL, said
    assert [version.version for version in registry.versions.all("bot")] == [1]
    later = request.created_at + timedelta(seconds=1)  # while the request waits, users correct answers again
    texts = [f"Something else altogether, said {n} times." for n in range(20)]
    registry.traffic.add_feedback(
        [Feedback(id=f"fb-later-{n}", request_id=f"req-{n}", at=later, correction=text) for n, text in enumerate(texts)]
    )
    time.sleep(2.2)  # the dead worker's lease runs out on the real clock
    screen = io.StringIO()
    done = worker(registry, screen=Screen(screen)).run_once()
    assert done is not None
    assert "resumed after step 2" in screen.getvalue()
    assert (done.id, done.attempts, done.result_version) == (request.id, 2, 2)
    assert done.state in {RetrainingState.GATED, RetrainingState.REJECTED}
    assert [version.version for version in registry.versions.all("bot")] == [2, 1]
    assert registry.versions.for_request(request.id) == registry.versions.get("bot", 2)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.2)
