"""No process is left behind: not by a killed agent, not by a dead leader, and never somebody else's is ended."""

from __future__ import annotations

import json
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
from tuneloop.registry.errors import Conflict, InvalidInput
from tuneloop.serve.engine.launch import Launch
from tuneloop.serve.engine.ports import ensure_port_free, hold_port
from tuneloop.serve.engine.process import RECORD, EngineProcess, clear_leftovers, sole_agent

# A process with a child of its own that ignores SIGTERM, as vLLM's engine core under load does.
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
FAMILY = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print("child", child.pid, flush=True)
time.sleep(600)
"""
AGENT = """
import os, sys, time
from pathlib import Path
from tuneloop.serve.engine.launch import Launch
from tuneloop.serve.engine.ports import ensure_port_free, hold_port
from tuneloop.serve.engine.process import EngineProcess
EngineProcess(Launch((sys.executable, "-c", sys.argv[2]), dict(os.environ)), Path(sys.argv[1]))
time.sleep(600)
"""


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def child_of(home: Path) -> int:
    log = home / "engine.log"
    eventually(lambda: log.exists() and "child " in log.read_text())
    return int(log.read_text().split("child ")[1].split()[0])


def family(home: Path) -> EngineProcess:
    return EngineProcess(Launch((sys.executable, "-c", FAMILY), dict(os.environ)), home)


def test_stopping_ends_the_whole_family(tmp_path: Path) -> None:
    process = family(tmp_path)
    child = child_of(tmp_path)
    process.stop(timeout_s=5)
    assert process.ended() is not None
    assert gone(child)
    assert not (tmp_path / RECORD).exists()


def test_kill_9_of_the_agent_takes_the_whole_family_with_it(tmp_path: Path) -> None:
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path), FAMILY])
    child = child_of(tmp_path)
    eventually((tmp_path / RECORD).exists)  # it is written once the child is on its way
    leash = json.loads((tmp_path / RECORD).read_text())["pid"]
    agent.kill()
    agent.wait()
    eventually(lambda: gone(child) and gone(leash))


def test_what_survives_agent_and_leash_is_ended_by_the_next_agent(tmp_path: Path) -> None:
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path), FAMILY])
    child = child_of(tmp_path)
    eventually((tmp_path / RECORD).exists)  # it is written once the child is on its way
    leash = json.loads((tmp_path / RECORD).read_text())["pid"]
    os.kill(leash, signal.SIGSTOP)  # so that it cannot do its work when the agent goes
    agent.kill()
    agent.wait()
    os.kill(leash, signal.SIGKILL)
    eventually(lambda: gone(leash))
    assert not gone(child)
    assert clear_leftovers(tmp_path) >= 1
    assert gone(child)
    assert clear_leftovers(tmp_path) == 0


def test_kill_9_of_the_leash_is_noticed_and_nothing_is_left(tmp_path: Path) -> None:
    process = family(tmp_path)
    child = child_of(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: process.ended() == "vLLM was ended by SIGKILL")
    process.kill()
    assert gone(child)


@pytest.mark.parametrize("change", [{"started": 1.0}, {"where": "another machine"}])
def test_a_process_that_got_the_recorded_number_by_chance_is_left_alone(
    tmp_path: Path, change: dict[str, object]
) -> None:
    process = family(tmp_path)
    child = child_of(tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | change))
    assert clear_leftovers(tmp_path) == 0
    assert not gone(child)
    process.kill()


def test_a_second_agent_of_the_same_engine_is_refused(tmp_path: Path) -> None:
    told = f"e1 already has an agent .pid {os.getpid()}"
    with sole_agent(tmp_path / "e1"), pytest.raises(Conflict, match=told), sole_agent(tmp_path / "e1"):
        pass
    with sole_agent(tmp_path / "e1"):
        pass


def test_a_taken_port_is_told_with_its_owner() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}"):
            ensure_port_free("127.0.0.1", port)
    ensure_port_free("127.0.0.1", port)


def test_an_agent_keeps_its_port_while_its_vllm_is_away() -> None:
    port = free_port()
    with hold_port(port):
        ensure_port_free("127.0.0.1", port)
        with pytest.raises(Conflict, match=f"port {port} is taken by another engine agent"), hold_port(port):
            pass
    with hold_port(port):
        pass


def test_who_listens_on_the_port_is_known(tmp_path: Path) -> None:
    port = free_port()
    server = f"import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {port})); s.listen(); time.sleep(600)"
    process = EngineProcess(Launch((sys.executable, "-c", server), dict(os.environ)), tmp_path)
    eventually(lambda: process.answers_on(port))
    assert not process.answers_on(port + 1)
    process.kill()
    assert not process.answers_on(port)


def test_each_start_has_its_own_log_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        command = (sys.executable, "-c", f"print('run {number}'); print('ValueError: no such model {number}')")
        process = EngineProcess(Launch(command, dict(os.environ)), tmp_path)
        eventually(lambda process=process: process.ended() is not None)  # type: ignore[misc]  # mypy cannot type a bound default
        process.kill()
    assert process.ended() == "vLLM ended with status 0"
    assert process.last_lines().startswith("ValueError: no such model 4")
    assert sorted(path.name for path in tmp_path.glob("engine.log*")) == [
        *("engine.log", "engine.log.1", "engine.log.2", "engine.log.3"),
    ]
    assert "run 1" in (tmp_path / "engine.log.3").read_text()


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"[]", b'{"pid": 1}', b'{"pid": "x", "started": 0, "where": ""}'])
def test_a_record_that_cannot_be_read_stops_the_start_with_one_clear_error(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / RECORD).write_bytes(garbage)
    with pytest.raises(InvalidInput, match="see with `ps` that no vLLM of this engine runs"):
        clear_leftovers(tmp_path)
    assert (tmp_path / RECORD).read_bytes() == garbage
