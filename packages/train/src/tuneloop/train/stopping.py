"""Stopping a run in order: a flag that signals and lost leases raise, and that the run looks at between batches.

A batch is the longest a stop waits. A second signal ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tuneloop.registry.errors import TuneloopError


class Stopped(TuneloopError):
    """The run was asked to stop before its end; nothing was published."""

    def kept(self, step: int) -> Stopped:
        """The same reason, when the state after `step` was written down first."""
        return Stopped(
            f"{self}; the state after step {step} is kept: the same command with --resume goes on from there"
        )


class StopFlag:
    """Set by anyone, once; raised where the run next calls `check`."""

    def __init__(self) -> None:
        self._reason: TuneloopError | None = None
        self._event = threading.Event()

    def stop(self, reason: TuneloopError) -> None:
        """Ask the run to end with this error; the first reason stays."""
        if self._reason is None:
            self._reason = reason
            self._event.set()

    def check(self) -> None:
        """Go on, or end here.

        Raises:
            TuneloopError: the reason given to `stop`.
        """
        if self._reason is not None:
            raise self._reason

    @property
    def is_set(self) -> bool:
        """Whether somebody asked to stop."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep, but no longer than until somebody asks to stop; whether somebody did."""
        return self._event.wait(timeout_s)


@contextmanager
def stop_on_signals(flag: StopFlag) -> Iterator[None]:
    """Let SIGTERM and SIGINT set the flag while the block runs (main thread only); a second one interrupts at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if flag.is_set:
            raise KeyboardInterrupt
        flag.stop(Stopped(f"stopped by {signal.Signals(number).name}; nothing was published"))

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
