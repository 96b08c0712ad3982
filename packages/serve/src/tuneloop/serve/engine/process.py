"""The vLLM process: started in a session of its own behind a leash, logged, and never left behind.

Invariants: one agent per engine folder (a lock that dies with its holder); whatever an agent that was killed may have
left is killed by recorded pid and start time before anything new starts; a pid that was re-used since is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tuneloop.registry.errors import Conflict, InvalidInput
from tuneloop.registry.files import OWNER_ONLY, write_atomically
from tuneloop.serve.engine import leash
from tuneloop.serve.engine.launch import Launch
from tuneloop.serve.engine.ports import listens

LOG, RECORD, LOCK = "engine.log", "process.json", "agent.lock"
_KEPT_LOGS = 3
_KILL_WAIT_S = 10.0


@contextmanager
def sole_agent(home: Path) -> Iterator[None]:
    """Hold the engine's folder for this process alone; the kernel lets go when the process ends, however it ends.

    Raises:
        Conflict: another agent holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Conflict(
                f"engine {home.name} already has an agent (pid {file.read().strip()}); stop it or give another --id"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def clear_leftovers(home: Path) -> int:
    """Kill what a former agent's vLLM left running; how many processes that were."""
    record = home / RECORD
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        pid, started, where = int(said["pid"]), float(said["started"]), said["where"]
    except FileNotFoundError:
        return 0
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(
            f"{record}: {error}; see with `ps` that no vLLM of this engine runs, then remove the file"
        ) from None
    found = _kill_session(pid, started) if where == _process_space() else 0
    record.unlink()
    return found


class EngineProcess:
    """One run of vLLM, from start to certain end."""

    def __init__(self, launch: Launch, home: Path) -> None:
        self._home = home
        self.log = home / LOG
        _rotate(self.log)
        with self.log.open("ab") as output:
            self._leash = subprocess.Popen(
                [sys.executable, "-I", leash.__file__, *launch.command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=launch.environment,
                start_new_session=True,
            )
        self.pid = self._leash.pid
        self._started = psutil.Process(self.pid).create_time()
        write_atomically(home / RECORD, json.dumps(self._record()).encode(), mode=OWNER_ONLY)

    def _record(self) -> dict[str, int | float | str]:
        return {"pid": self.pid, "started": self._started, "where": _process_space()}

    def answers_on(self, port: int) -> bool:
        """Whether it is this process's family that listens there, not somebody else's."""
        return any(listens(process, port) for process in _session_members(self.pid, self._started))

    def ended(self) -> str | None:
        """How it ended, in words; None while it runs."""
        code = self._leash.poll()
        if code is None:
            return None
        number = -code if code < 0 else code - 128
        if 0 < number < signal.NSIG and (code < 0 or code > 128):
            return f"vLLM was ended by {signal.Signals(number).name}"
        return f"vLLM ended with status {code}"

    def stop(self, timeout_s: float) -> None:
        """Ask it to finish what is running and leave; kill what is left after `timeout_s`. Blocks."""
        with contextlib.suppress(ProcessLookupError):  # it may end between the look and the signal
            self._leash.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it is killed below
            self._leash.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End every process of its session at once. Blocks for at most some seconds."""
        _kill_session(self.pid, self._started)
        self._leash.wait()
        if self._leash.stdin is not None:
            self._leash.stdin.close()
        (self._home / RECORD).unlink(missing_ok=True)

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, errors first: what to show when it could not start."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if "Error" in line and "Traceback" not in line][-3:]
        return "\n".join([*telling, "…", *lines[-count:]] if telling else lines[-count:])


def _kill_session(session: int, started: float) -> int:
    """Kill every process of a session whose leader began at `started`; returns how many there were.

    A session number is not given to a new process while a member lives, so members found are the recorded ones, unless
    the leader's own start time says the number was re-used.
    """
    deadline = time.monotonic() + _KILL_WAIT_S
    killed: set[int] = set()
    while members := _session_members(session, started):
        for process in members:
            killed.add(process.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if time.monotonic() > deadline:
            raise Conflict(
                f"processes {sorted(p.pid for p in members)} of a former engine do not end; kill them by hand"
            )
        time.sleep(0.05)
    return len(killed)


def _session_members(session: int, started: float) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) != session or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.pid == session and abs(process.create_time() - started) > 1:
                return []
            if process.create_time() >= started - 1:
                members.append(process)
    return members


def _process_space() -> str:
    """Which boot and process namespace pids belong to: in another one, the same number is somebody else."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text(encoding='ascii').strip()} {Path('/proc/self/ns/pid').readlink()}" if boot.exists() else ""


def _rotate(log: Path) -> None:
    for number in range(_KEPT_LOGS - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))
