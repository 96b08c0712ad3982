"""From a thread onto the event loop and back with what was found there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> T:
    """Run `call` on the event loop and wait, on a thread of its own, for what it returns."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that asked)
            result.set_exception(error)

    loop.call_soon_threadsafe(run)
    return result.result(timeout=30.0)
