"""`tuneloop api` as a process; and what nobody who does not start it pays for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from registry.api.plane import Plane
from registry.verbs import let_live
from tests_support import beat_engine, beat_gateway, free_port
from tuneloop.registry import Registry
from tuneloop.registry.access.roles import Role
from tuneloop.registry.api import reference

ROOT = Path(__file__).parents[3]


@dataclass
class Ended:
    """What a process that was asked to end still answered, and what it said."""

    answers: list[httpx.Response]
    said: str


@contextmanager
def started(home: Path, port: int, **variables: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"TUNELOOP_HOME": str(home), "TUNELOOP_API_PORT": str(port)} | variables
    command = [sys.executable, "-m", "tuneloop.cli", "api"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=home) as process:
        try:
            yield process
        finally:
            process.kill()


def until_ready(url: str, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("it does not become ready")


@contextmanager
def asked_to_end_while(registry: Registry, port: int, path: str, begun: Callable[[], bool]) -> Iterator[Ended]:
    """A request is under way, as `begun` tells, when the process gets SIGTERM; both have ended after the block."""
    secret, _ = registry.tokens.new("ada", Role.PROMOTER, by="t", reason="r")
    url, ended = f"http://127.0.0.1:{port}", Ended([], "")

    def ask() -> None:
        headers = {"authorization": f"Bearer {secret}"}
        ended.answers.append(httpx.post(f"{url}{path}", json={"reason": "test"}, headers=headers, timeout=60))

    with started(registry.settings.home, port) as process:
        until_ready(url)
        asking = threading.Thread(target=ask)
        assert not begun()
        asking.start()
        while not begun():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        yield ended
        asking.join()
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        ended.said = process.stderr.read()
    assert "Traceback" not in ended.said
    assert "the control plane has ended" in ended.said


def test_on_sigterm_a_change_that_waits_for_a_gateway_is_answered_first(registry: Registry, tmp_path: Path) -> None:
    let_live(registry, tmp_path)
    path = "/v1/models/bot/rollback"

    def written() -> bool:
        beat_gateway(registry, {"bot": 2})  # it lives, however long the process takes to start
        return registry.routes.current("bot").revision == 3

    with asked_to_end_while(registry, free_port(), path, written) as ended:
        time.sleep(0.3)
        assert ended.answers == []
        beat_gateway(registry, {"bot": 3})
    assert (ended.answers[0].status_code, ended.answers[0].json()["revision"]) == (200, 3)


def test_on_sigterm_a_change_that_waits_for_an_engine_is_given_up_and_the_route_is_as_it_was(
    registry: Registry, tmp_path: Path
) -> None:
    let_live(registry, tmp_path)
    registry.gates.approve("bot", 3, by="ada", reason="r")
    before = registry.routes.current("bot")

    def staged() -> bool:
        beat_engine(registry, "bot@1", "bot@2")  # it lives, and never loads the third
        beat_gateway(registry, {"bot": 9})
        return 3 in registry.routes.current("bot").split

    path = "/v1/models/bot/versions/3/promote"
    began = time.monotonic()
    with asked_to_end_while(registry, free_port(), path, staged) as ended:
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert ended.answers[0].json()["type"] == "urn:tuneloop:problem:unavailable"
    assert "asked to end" in ended.answers[0].json()["detail"]
    assert registry.routes.current("bot").arms == before.arms


def test_a_taken_port_is_one_clear_error(registry_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(registry_home, port) as process:
            assert process.wait(timeout=240) == 1
            assert process.stderr is not None
            said = process.stderr.read()
    assert f"the control plane cannot listen on 127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_a_wrong_setting_is_named(registry_home: Path) -> None:
    with started(registry_home, 0, TUNELOOP_API_RATE_PER_S="0") as process:
        assert process.wait(timeout=240) == 2
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


def test_the_document_tells_the_roles_there_are() -> None:
    told = (ROOT / "docs" / "control-plane.md").read_text(encoding="utf-8")
    assert "\n".join(reference.roles()) in told


@pytest.mark.parametrize("name", ["openapi.json", "control-plane.md"])
def test_writing_the_reference_writes_both_files(name: str, tmp_path: Path) -> None:
    reference.main(tmp_path)
    assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "reference" / name).read_bytes()
