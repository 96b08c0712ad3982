"""Redaction in a process of its own: Presidio needs 120 MB, seconds to start and milliseconds a text, none of which a
gateway can spare.

A worker that fails or overruns its deadline is replaced, and its texts are not stored. Killing the gateway ends the
worker too: its pipe closes.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from tuneloop.registry.errors import Unavailable

log = logging.getLogger(__name__)
START_TIMEOUT_S = 120.0
STAND_BACK_S = 0.2  # how long one who is not urgent lets urgent ones go first
_READY = "ready"


class Redactor:
    """Redacts texts, one caller at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._urgent = 0  # callers whom a client waits for: feedback goes before records
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._warm = False
        self._ended = False

    def start(self) -> None:
        """Start the worker, without waiting until it is warm (about 3 s)."""
        with self._lock:
            self._spawn()

    def redact(self, texts: Sequence[str], timeout_s: float, *, urgent: bool = False) -> list[str]:
        """The texts without personal data; `timeout_s` counts from when the worker is warm.

        Raises:
            Unavailable: the worker failed or took too long; nothing may be stored.
        """
        if not urgent:
            with self._turn:
                self._turn.wait_for(lambda: not self._urgent, STAND_BACK_S)
            return self._alone(texts, timeout_s)
        with self._turn:
            self._urgent += 1
        try:
            return self._alone(texts, timeout_s)
        finally:
            with self._turn:
                self._urgent -= 1
                self._turn.notify_all()

    def stop(self) -> None:
        """End the worker, also in the middle of its work; whoever waits for it, or asks later, gets `Unavailable`."""
        self._ended = True
        if self._process is not None:
            self._process.kill()
        with self._lock:
            self._kill()

    def _alone(self, texts: Sequence[str], timeout_s: float) -> list[str]:
        with self._lock:
            return self._ask(list(texts), timeout_s)

    def _ask(self, texts: list[str], timeout_s: float) -> list[str]:
        if self._ended:
            raise Unavailable("the redaction worker has been stopped")
        try:
            pipe = self._pipe or self._spawn()
            if not self._warm:
                self._receive(pipe, START_TIMEOUT_S)
                self._warm = True
            pipe.send(texts)
            answer = self._receive(pipe, timeout_s)
        except (OSError, EOFError) as error:
            self._kill()
            raise Unavailable(f"the redaction worker failed ({error or 'it ended'}); another is started") from error
        if not isinstance(answer, list):
            raise Unavailable(f"redaction failed: {answer}")
        return answer

    @staticmethod
    def _receive(pipe: Connection, timeout_s: float) -> object:
        if not pipe.poll(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        answer: object = pipe.recv()
        return answer

    def _spawn(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs,), name="redactor", daemon=True)
        self._process.start()
        theirs.close()
        self._warm = False
        return self._pipe

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def work(pipe: Connection) -> None:
    """The worker: lists of texts in, redacted ones (or the reason of a failure) out, until the pipe closes."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the gateway ends this worker when it has drained
    from tuneloop.registry.redaction import redact  # noqa: PLC0415 (120 MB that only this process may pay)

    remembered = lru_cache(maxsize=512)(lambda text: redact(text).text)  # system prompts come again and again
    remembered("Warm up: write to ada@example.com or call +44 20 7946 0958.")
    pipe.send(_READY)
    while True:
        try:
            texts = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send([remembered(text) for text in texts])
        except Exception as error:  # noqa: BLE001 (whatever a text provokes is reported; the worker lives on)
            pipe.send(f"{type(error).__name__}: {error}")
