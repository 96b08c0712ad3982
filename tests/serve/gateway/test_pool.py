"""Worker processes behind an event loop: deadlines, a bounded queue, and a new worker for one that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import pytest

from tuneloop.registry.errors import Unavailable
from tuneloop.serve.gateway import pool as pool_module
from tuneloop.serve.gateway.pool import Pool, QueueFull, TooLate
from tuneloop.serve.gateway.worker import Worker, serve


def work(pipe: Connection) -> None:
    serve(pipe, warm)


def warm() -> Callable[[object], object]:
    def answer(question: object) -> object:
        if question == "hang":
            time.sleep(3600)
        if question == "frozen":
            return gc.get_freeze_count()
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


class Question(str):
    """One that can be referred to weakly."""


def test_a_question_that_failed_is_not_kept_until_the_garbage_collector_finds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module.log, "disabled", True)  # pytest keeps what is logged, the failure among it

    async def run() -> None:
        pool = Pool("tester", work, size=1, most_waiting=2)
        try:
            await pool.ask("hello", 60.0)
            question = Question("fail")
            loop, gone = asyncio.get_running_loop(), asyncio.Event()
            weakref.finalize(question, loop.call_soon_threadsafe, gone.set)
            gc.collect()
            gc.disable()
            with contextlib.suppress(Unavailable):
                await pool.ask(question, 60.0)
            del question
            await asyncio.wait_for(gone.wait(), 60)
        finally:
            gc.enable()
            await asyncio.to_thread(pool.stop)

    asyncio.run(run())


def test_what_a_worker_has_loaded_is_never_collected_again() -> None:
    """A full collection would stop a text for as long as Presidio's objects take to look at: 180 ms."""
    worker = Worker("tester", work)
    try:
        assert worker.ask("frozen", 60.0) != 0
    finally:
        worker.stop()


def never_warm(pipe: Connection) -> None:
    pipe.recv()


def test_nobody_waits_for_ever_for_the_first_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "WARM_WITHIN_S", 0.2)

    async def run() -> None:
        pool = Pool("tester", never_warm, size=1, most_waiting=2)
        try:
            for timeout_s, told in ((0.1, "0.2"), (0.3, "0.3")):
                with pytest.raises(TooLate, match=f"no tester was warm within {told} s"):
                    await pool.ask("hello", timeout_s)
        finally:
            await asyncio.to_thread(pool.stop)

    asyncio.run(run())


def test_a_process_that_could_not_be_started_is_started_for_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many(_: SpawnProcess) -> None:
        raise OSError("no more processes")

    worker = Worker("tester", work)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(SpawnProcess, "start", too_many)
            worker.start()
            for _ in range(2):
                with pytest.raises(Unavailable, match="no more processes"):
                    worker.ask("hello", 60.0)
        assert isinstance(worker.ask("hello", 60.0), int)
        with pytest.raises(Unavailable, match="pickle"):
            worker.ask(lambda: None, 60.0)
        assert isinstance(worker.ask("hello", 60.0), int)
    finally:
        worker.stop()
