"""`tuneloop up`: all processes on one machine, and none of them left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests_support import free_port
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings

ROOT = Path(__file__).parents[2]


def _up(home: Path, base: Path, gateway_port: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "TUNELOOP_HOME": str(home),
        "TUNELOOP_GATEWAY_PORT": str(gateway_port),
        "TUNELOOP_API_PORT": str(free_port()),
        "TUNELOOP_ENGINE_PORT": str(free_port()),
    }
    command = [sys.executable, "-m", "tuneloop.cli", "up", "--base", str(base), "--logs", str(home / "logs")]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _wait(ready: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _left(home: Path) -> list[list[str]]:
    running = psutil.process_iter(["cmdline", "environ"])
    return [process.info["cmdline"] for process in running if str(home) in str(process.info["environ"])]


@pytest.mark.engine
def test_up_runs_every_process_and_stops_them_all_on_ctrl_c(registry: Registry, smollm2: Path) -> None:
    home = registry.settings.home
    with _up(home, smollm2, free_port()) as process:
        ready = _wait(
            lambda: (
                any(engine.state == "ready" for engine in registry.fleet.engines()) and registry.fleet.gateways() != []
            ),
            240,
        )
        logs = {log.stem for log in (home / "logs").glob("*.log")}
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=90)
    assert ready, said
    assert logs == {"engine", "gateway", "monitor", "worker", "controller", "api"}
    assert process.returncode == 0
    assert "all stopped" in said
    assert _left(home) == []
    assert registry.fleet.engines() == []  # they took themselves off the list
    assert registry.fleet.gateways() == []


def test_up_that_cannot_start_says_why_and_leaves_nothing(registry_home: Path, smollm2: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with _up(registry_home, smollm2, port) as process:
            said, _ = process.communicate(timeout=90)
    assert process.returncode == 2  # it is told to listen where it cannot
    assert f"gateway cannot listen on 127.0.0.1:{port}" in said
    assert "TUNELOOP_GATEWAY_PORT" in said
    assert _left(registry_home) == []
    with Registry.open(RegistrySettings(home=registry_home)) as registry:
        assert registry.fleet.gateways() == []
