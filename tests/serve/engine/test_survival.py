"""kill -9 and worse: vLLM comes back with its adapters before it is called ready, and no process is left behind.

Each restart of vLLM takes most of a minute, so three deaths share two restarts. The engine serves again at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from serve.engine_support import ENGINE, MODEL, START_TIMEOUT_S, EngineAgent
from tests_support import free_port
from tuneloop.registry.nouns import AdapterState
from tuneloop.serve.engine.ports import ensure_port_free

pytestmark = pytest.mark.engine
ADAPTERS = {f"{MODEL}@1", f"{MODEL}@2"}


def ready_again(engine_agent: EngineAgent) -> None:
    """Wait for `ready`; a heartbeat that says it must have every adapter ready, and vLLM must list them."""
    state = engine_agent.wait_until(lambda state: state.state != "ready")
    state = engine_agent.wait_until(lambda state: state.state == "ready", START_TIMEOUT_S)
    assert {name for name in ADAPTERS if state.adapters.get(name) is AdapterState.READY} == ADAPTERS
    assert engine_agent.models() >= ADAPTERS
    engine_agent.complete([{"model": name, "prompt": "Hello", "max_tokens": 1} for name in ADAPTERS])


def processes(engine_agent: EngineAgent, name: str) -> list[psutil.Process]:
    return [process for process in engine_agent.vllm() if name in " ".join(process.cmdline())]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_gone(old: list[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while left := [process for process in old if not gone(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_after_kill_9_of_vllm_its_adapters_are_back_before_it_is_ready(engine_agent: EngineAgent) -> None:
    engine_agent.wait_ready()
    old = engine_agent.vllm()
    (server,) = processes(engine_agent, "vllm.entrypoints.openai.api_server")[-1:]
    server.kill()
    ready_again(engine_agent)
    assert all(map(gone, old))
    assert "restarting in 1 s" in engine_agent.said()


def test_a_hung_vllm_is_ended_and_kill_9_of_the_agent_leaves_nothing_for_the_next(engine_agent: EngineAgent) -> None:
    engine_agent.wait_ready()
    old = engine_agent.vllm()
    (worker,) = processes(engine_agent, "VLLM::Worker") or processes(engine_agent, "VLLM::EngineCore")
    os.kill(worker.pid, signal.SIGSTOP)
    engine_agent.wait_until(lambda state: "vLLM made no token in 16 s: hung" in state.detail, 60)
    wait_gone(old, timeout_s=30)

    engine_agent.wait_until(lambda state: state.state == "starting")
    old = engine_agent.vllm()
    assert old, "the next vLLM is on its way up when its agent is killed"
    engine_agent.kill()
    wait_gone(old, timeout_s=30)
    ensure_port_free("127.0.0.1", engine_agent.port)

    engine_agent.start()
    ready_again(engine_agent)


def engine(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ENGINE, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"TUNELOOP_HOME": str(home)},
    )


def test_a_second_agent_on_the_port_or_the_id_is_refused_at_once(engine_agent: EngineAgent, tmp_path: Path) -> None:
    base, port = str(engine_agent.base), str(engine_agent.port)
    done = engine(tmp_path, "--base", base, "--id", "other", "--port", port)
    assert done.returncode == 1
    assert f"port {port} is taken by pid" in done.stderr
    done = engine(engine_agent.home, "--base", base, "--id", engine_agent.id, "--port", str(free_port()))
    assert done.returncode == 1
    assert f"{engine_agent.id} already has an agent (pid {engine_agent.pid})" in done.stderr


def test_an_engine_that_cannot_start_shows_the_end_of_its_log(smollm2: Path, tmp_path: Path) -> None:
    bogus = tmp_path / "bogus"
    shutil.copytree(smollm2, bogus, ignore=shutil.ignore_patterns("*.safetensors"))
    (bogus / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (bogus / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "nosuch"}')
    done = engine(tmp_path / "home", "--base", str(bogus), "--id", "bogus", "--port", str(free_port()))
    assert done.returncode == 1
    assert "engine bogus cannot start: vLLM ended with status 1" in done.stderr
    assert "nosuch" in done.stderr.partition("ends with")[2]
    assert sys.executable not in done.stderr.partition("ends with")[2]
