"""Redaction of what is stored, in a worker process: personal data, and secrets by the formats that the guards know.

A worker that fails or overruns its deadline is replaced, and its texts are not stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing.connection import Connection

from tuneloop.registry.errors import Unavailable
from tuneloop.serve.gateway.worker import Worker, serve
from tuneloop.serve.guards import secrets
from tuneloop.serve.guards.verdict import replaced

STAND_BACK_S = 0.2  # how long one who is not urgent lets urgent ones go first


class Redactor:
    """Redacts texts, one caller at a time."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._urgent = 0  # callers whom a client waits for: feedback goes before records
        self._worker = Worker("redaction worker", work)

    def start(self) -> None:
        """Start the worker, without waiting until it is warm (about 3 s)."""
        self._worker.start()

    def redact(self, texts: Sequence[str], timeout_s: float, *, urgent: bool = False) -> list[str]:
        """The texts without personal data and secrets; `timeout_s` counts from when the worker is warm.

        Raises:
            Unavailable: the worker failed or took too long; nothing may be stored.
        """
        if not urgent:
            with self._turn:
                self._turn.wait_for(lambda: not self._urgent, STAND_BACK_S)
            return self._ask(texts, timeout_s)
        with self._turn:
            self._urgent += 1
        try:
            return self._ask(texts, timeout_s)
        finally:
            with self._turn:
                self._urgent -= 1
                self._turn.notify_all()

    def stop(self) -> None:
        """End the worker, also in the middle of its work; whoever waits for it, or asks later, gets `Unavailable`."""
        self._worker.stop()

    def _ask(self, texts: Sequence[str], timeout_s: float) -> list[str]:
        answer = self._worker.ask(list(texts), timeout_s)
        if not isinstance(answer, list):
            raise Unavailable(f"redaction failed: the worker answered with a {type(answer).__name__}")
        return answer


def work(pipe: Connection) -> None:
    """The worker: lists of texts in, redacted ones out."""
    serve(pipe, _warm)


def _warm() -> Callable[[object], object]:
    from tuneloop.registry.redaction import find  # noqa: PLC0415 (120 MB that only this process may pay)

    @lru_cache(maxsize=512)  # system prompts come again and again
    def remembered(text: str) -> str:
        personal = [(one.start, one.end, one.entity) for one in find(text)]
        return replaced(text, [*((one.start, one.end, one.kind) for one in secrets.find(text)), *personal])

    remembered("Warm up: write to ada@example.com or call +44 20 7946 0958.")

    def answer(question: object) -> object:
        assert isinstance(question, list)
        return [remembered(text) for text in question]

    return answer
