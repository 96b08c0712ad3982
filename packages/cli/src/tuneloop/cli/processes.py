"""Processes started, watched and stopped in order: each in a session of its own, each with a log file.

Stopping asks with SIGTERM, in the reverse order of starting, and kills what does not end in time, children included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

import click
import psutil

STOP_TIMEOUT_S = 30.0
LEFT_BEHIND_S = 5.0
TAIL_LINES = 12


def tuneloop_command(*arguments: str) -> list[str]:
    """The command line of a verb, run by this interpreter."""
    return [sys.executable, "-m", "tuneloop.cli", *arguments]


@dataclass(frozen=True)
class Ended:
    """A process that is no longer there."""

    name: str
    code: int
    tail: str


class Processes:
    """A group of named processes that live and end together."""

    def __init__(
        self,
        logs: Path,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        *,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self._logs = logs
        self._stop_timeout_s = stop_timeout_s
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._say = say
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._patience_s: dict[str, float] = {}
        self._readers: dict[str, threading.Thread] = {}
        self._verbs: dict[str, subprocess.Popen[str]] = {}  # apart: `run` waits for these itself, `ended` must not

    def start(
        self, name: str, command: Sequence[str], *, echo: bool = False, stop_timeout_s: float | None = None
    ) -> subprocess.Popen[str]:
        """Start a process; its output goes to `<logs>/<name>.log`, and with `echo` to `say` too.

        `stop_timeout_s` is how long it may take to end when it is asked to; None: as long as any of the group.

        Raises:
            ValueError: one of that name is running.
            click.ClickException: its log cannot be written; nothing was started.
        """
        if name in self._running and self._running[name].poll() is None:
            raise ValueError(f"{name} is running already")
        log = self._open_log(name)
        process = subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",  # a reader that stopped at a stray byte would leave the process hanging on a full pipe
            start_new_session=True,
        )
        self._running[name] = process
        self._patience_s[name] = self._stop_timeout_s if stop_timeout_s is None else stop_timeout_s
        reader = threading.Thread(target=self._copy, args=(name, process, log, echo), daemon=True)
        reader.start()
        self._readers[name] = reader
        return process

    def run(self, *arguments: str, echo: bool = False) -> str:
        """Run a verb to its end and return what it printed on standard output.

        Raises:
            subprocess.CalledProcessError: it did not end with 0; `stderr` says why.
        """
        process = subprocess.Popen(
            tuneloop_command(*arguments),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        name = f"{arguments[0]} {process.pid}"
        self._verbs[name] = process
        lines: list[str] = []
        errors: list[str] = []
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(target=_collect, args=(process.stderr, errors), daemon=True)
        reader.start()
        with process.stdout:
            for line in process.stdout:
                lines.append(line)
                if echo:
                    self._say(line.rstrip())
        code = process.wait()
        reader.join(timeout=5)
        self._verbs.pop(name, None)
        if code != 0:
            raise subprocess.CalledProcessError(code, ["tuneloop", *arguments], "".join(lines), "".join(errors))
        return "".join(lines)

    def ended(self) -> list[Ended]:
        """Processes that ended by themselves since the last look."""
        gone = {name: process for name, process in self._running.items() if process.poll() is not None}
        for name in gone:
            del self._running[name]
            self._readers.pop(name).join(timeout=2)  # its last lines, which say why
        return [Ended(name, process.returncode, self.tail(name)) for name, process in gone.items()]

    def tail(self, name: str) -> str:
        """The last lines of a process's log."""
        log = self._logs / f"{name}.log"
        return "\n".join(log.read_text(encoding="utf-8").splitlines()[-TAIL_LINES:]) if log.exists() else ""

    def memory_bytes(self) -> int:
        """What this process and everything below it hold now, shared pages counted once (PSS)."""
        total = 0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended between the list and the look
        return total

    def stop(self, name: str) -> None:
        """Ask one process to end, and make sure that it does and leaves nothing behind."""
        process = self._running.pop(name, None)
        if process is not None:
            self._end(name, process)
            self._readers.pop(name).join(timeout=2)

    def stop_all(self) -> None:
        """Stop everything, the last started first."""
        for name, process in reversed(list(self._verbs.items())):
            self._end(name, process)
        for name in reversed(list(self._running)):
            self.stop(name)

    def _end(self, name: str, process: subprocess.Popen[str]) -> None:
        below, patience_s = _below(process.pid), self._patience_s.get(name, self._stop_timeout_s)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._say(f"{name} did not end within {patience_s:.0f} s: killed")
                process.kill()
                process.wait()
        # What it started and did not take with it: its session, and whatever was below it when the stopping began.
        left = psutil.wait_procs({*below, *_session(process.pid)}, timeout=min(LEFT_BEHIND_S, self._stop_timeout_s))[1]
        for child in left:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue  # it ended between the wait and the kill
        psutil.wait_procs(left, timeout=LEFT_BEHIND_S)

    def _open_log(self, name: str) -> TextIO:
        path = self._logs / f"{name}.log"
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            return path.open("a", encoding="utf-8")
        except OSError as error:
            raise click.ClickException(
                f"log {path} cannot be written ({error.strerror}); give `tuneloop up` --logs with a folder that can be"
            ) from None

    def _copy(self, name: str, process: subprocess.Popen[str], log: TextIO, echo: bool) -> None:
        assert process.stdout is not None
        with process.stdout, log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if echo:
                    self._say(f"{name:8} {line.rstrip()}")


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _session(pid: int) -> list[psutil.Process]:
    """The processes of the session that `pid` led, which its orphans stay in."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and process.pid != pid:
                found.append(process)
        except (ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or is somebody else's
    return found


def wait_until(
    what: str,
    ready: Callable[[], bool],
    timeout_s: float,
    failed: Callable[[], str | None] = lambda: None,
    *,
    every_s: float = 0.25,
) -> float:
    """Wait until `ready()`; returns the seconds it took.

    Raises:
        TimeoutError: it did not become ready in time, or `failed()` said why it never will.
    """
    began = time.monotonic()
    while not ready():
        if (reason := failed()) is not None:
            raise TimeoutError(f"{what}: {reason}")
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"{what}: not after {timeout_s:.0f} s")
        time.sleep(every_s)
    return time.monotonic() - began


def _collect(stream: IO[str], into: list[str]) -> None:
    with stream:
        into.extend(stream)
