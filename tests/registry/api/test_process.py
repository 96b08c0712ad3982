"""`tuneloop api` as a process; and what nobody who does not start it pays for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from registry.api.plane import Plane
from tests_support import beat_gateway, free_port
from tuneloop.registry import Registry
from tuneloop.registry.api import reference
from tuneloop.registry.roles import Role
from tuneloop.registry.settings import RegistrySettings

ROOT = Path(__file__).parents[3]


@contextmanager
def started(home: Path, port: int, **variables: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"TUNELOOP_HOME": str(home), "TUNELOOP_API_PORT": str(port)} | variables
    command = [sys.executable, "-m", "tuneloop.cli", "api"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=home) as process:
        try:
            yield process
        finally:
            process.kill()


def until_ready(url: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("it does not become ready")


def test_on_sigterm_the_request_in_flight_is_answered_and_it_ends_in_order(lived_in_home: Path, tmp_path: Path) -> None:
    """A rollback waits for a gateway when the process is asked to end: it is answered first."""
    home, port = tmp_path / "home", free_port()
    shutil.copytree(lived_in_home, home)
    with Registry.open(RegistrySettings(home=home)) as registry, started(home, port) as process:
        secret, _ = registry.tokens.new("ada", Role.PROMOTER, by="t", reason="r")
        url = f"http://127.0.0.1:{port}"
        until_ready(url)
        beat_gateway(registry, {"bot": 2})
        answers: list[httpx.Response] = []
        headers = {"authorization": f"Bearer {secret}"}

        def roll_back() -> None:
            said = {"reason": "test"}
            path = f"{url}/v1/models/bot/rollback"
            answers.append(httpx.post(path, json=said, headers=headers, timeout=30))

        asking = threading.Thread(target=roll_back)
        asking.start()
        while registry.routes.current("bot").revision == 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert answers == []
        beat_gateway(registry, {"bot": 3})
        asking.join()
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert (answers[0].status_code, answers[0].json()["revision"]) == (200, 3)
    assert "Traceback" not in said
    assert "the control plane has ended" in said


def test_a_taken_port_is_one_clear_error(registry_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(registry_home, port) as process:
            assert process.wait(timeout=60) == 1
            assert process.stderr is not None
            said = process.stderr.read()
    assert f"the control plane cannot listen on 127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_a_wrong_setting_is_named(registry_home: Path) -> None:
    with started(registry_home, 0, TUNELOOP_API_RATE_PER_S="0") as process:
        assert process.wait(timeout=60) == 2
        assert process.stderr is not None
        assert "[api] rate_per_s" in process.stderr.read()


def test_only_who_starts_it_imports_what_it_runs_on() -> None:
    code = (
        "import sys, tuneloop.registry, tuneloop.registry.verbs\n"
        "import tuneloop.registry.overview, tuneloop.registry.actions\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'anyio', 'mlflow', 'numpy', 'scipy', 'matplotlib'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_reference_is_fresh() -> None:
    folder = ROOT / "docs" / "reference"
    again = "run `python -m tuneloop.registry.api.reference docs/reference`"
    assert (folder / "openapi.json").read_text(encoding="utf-8") == reference.openapi_json(), again
    assert (folder / "control-plane.md").read_text(encoding="utf-8") == reference.page(), again


def test_what_is_served_is_the_document_in_the_reference(shared_plane: Plane) -> None:
    kept = json.loads((ROOT / "docs" / "reference" / "openapi.json").read_text(encoding="utf-8"))
    assert shared_plane.get("/openapi.json", None) == kept


@pytest.mark.parametrize("name", ["openapi.json", "control-plane.md"])
def test_writing_the_reference_writes_both_files(name: str, tmp_path: Path) -> None:
    reference.main(tmp_path)
    assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "reference" / name).read_bytes()
