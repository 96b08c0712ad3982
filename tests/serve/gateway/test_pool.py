"""Worker processes behind an event loop: deadlines, a bounded queue, and a new worker for one that hangs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from tuneloop.registry.errors import Unavailable
from tuneloop.serve.gateway.pool import Pool, QueueFull, TooLate
from tuneloop.serve.gateway.worker import serve


def work(pipe: Connection) -> None:
    serve(pipe, warm)


def warm() -> Callable[[object], object]:
    def answer(question: object) -> object:
        if question == "hang":
            time.sleep(3600)
        if question == "fail":
            raise ValueError("no such thing")
        return os.getpid()

    return answer


def test_a_worker_that_hangs_is_replaced_and_one_that_only_fails_is_not() -> None:
    async def run() -> None:
        pool = Pool("tester", work, size=1, most_waiting=2, hung_s=1.0)
        try:
            first = await pool.ask("hello", 60.0)  # starts it
            with pytest.raises(Unavailable, match="ValueError: no such thing"):
                await pool.ask("fail", 60.0)
            assert await pool.ask("hello", 60.0) == first
            hangs = asyncio.create_task(pool.ask("hang", 0.05))
            await asyncio.sleep(0)
            waits = asyncio.create_task(pool.ask("hello", 60.0))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="2 wait"):
                await pool.ask("hello", 60.0)
            with pytest.raises(TooLate, match="no answer within"):
                await hangs
            assert await waits != first
        finally:
            await asyncio.to_thread(pool.stop)
        with pytest.raises((Unavailable, RuntimeError)):
            await pool.ask("hello", 0.1)

    asyncio.run(run())
