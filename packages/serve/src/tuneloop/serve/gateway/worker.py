"""A process of its own for what a gateway may not do itself, such as Presidio: 120 MB, seconds to start, milliseconds
a text.

One question at a time goes down its pipe. A worker that fails or overruns its time is replaced. Killing the gateway
ends the worker too: its pipe closes.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from tuneloop.registry.errors import Unavailable
from tuneloop.serve.gateway.collecting import settle

START_TIMEOUT_S = 120.0
_READY = "ready"
Target = Callable[[Connection], None]  # what the process runs; ends in `serve`


@dataclass(frozen=True)
class _Failed:
    """What a question provoked; the worker lives on."""

    why: str


class Worker:
    """One process, for one caller at a time."""

    def __init__(self, name: str, target: Target) -> None:
        """`name` is what it is called in errors and in lists of processes."""
        self._name = name
        self._target = target
        self._lock = threading.Lock()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._warm = False
        self._ended = False

    def start(self) -> None:
        """Start it, without waiting until it is warm (about 3 s); if that fails, who asks starts it again."""
        with self._lock, suppress(Unavailable):
            self._watched(self._spawn)

    def warm_up(self) -> None:
        """Wait until it is warm; it is started where it is not there.

        Raises:
            Unavailable: it failed.
        """
        with self._lock:
            self._watched(self._ready)

    def ask(self, question: object, timeout_s: float) -> object:
        """Its answer; `timeout_s` counts from when it is warm.

        Raises:
            Unavailable: it failed, cannot answer this, or took too long and is replaced.
        """
        with self._lock:
            answer = self._watched(lambda: self._answer(question, timeout_s))
        if isinstance(answer, _Failed):
            raise Unavailable(f"the {self._name} failed: {answer.why}")
        return answer

    def stop(self) -> None:
        """End it, also in the middle of its work; whoever waits for it, or asks later, gets `Unavailable`."""
        self._ended = True
        if (process := self._process) is not None:  # without the lock: an answer may take long
            with suppress(ValueError):  # whoever holds it has ended the process already
                process.kill()
        with self._lock:
            self._kill()

    def _watched(self, call: Callable[[], object]) -> object:
        if self._ended:
            raise Unavailable(f"the {self._name} has been stopped")
        try:
            return call()
        except Exception as error:  # whatever happened, nobody knows what comes down its pipe next
            self._kill()
            raise Unavailable(f"the {self._name} failed ({error or 'it ended'}); another is started") from error

    def _answer(self, question: object, timeout_s: float) -> object:
        pipe = self._ready()
        pipe.send(question)
        return self._receive(pipe, timeout_s)

    def _ready(self) -> Connection:
        pipe = self._pipe or self._spawn()
        if not self._warm:
            self._receive(pipe, START_TIMEOUT_S)
            self._warm = True
        return pipe

    @staticmethod
    def _receive(pipe: Connection, timeout_s: float) -> object:
        if not pipe.poll(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        answer: object = pipe.recv()
        return answer

    def _spawn(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        try:
            process = context.Process(target=self._target, args=(theirs,), name=self._name, daemon=True)
            process.start()
        except BaseException:
            pipe.close()
            raise
        finally:
            theirs.close()
        self._pipe, self._process, self._warm = pipe, process, False
        if self._ended:  # `stop` may have looked before there was a process
            raise EOFError("it was stopped as it started")
        return pipe

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def serve(pipe: Connection, warm: Callable[[], Callable[[object], object]]) -> None:
    """What a worker does until its pipe closes: questions in, answers (or the reason of a failure) out.

    `warm` does what takes long and gives the function that answers.
    """
    # Ctrl-C reaches the whole group; the gateway ends this worker when it has drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer = warm()
    settle()
    pipe.send(_READY)
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(answer(question))
        except Exception as error:  # noqa: BLE001 (whatever a text provokes is reported; the worker lives on)
            pipe.send(_Failed(f"{type(error).__name__}: {error}"))
