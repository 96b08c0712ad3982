"""Workers behind an event loop, for questions that requests wait for: a bounded queue, and a deadline each.

Whoever asked gives up at the deadline; the worker goes on for `hung_s` before it is replaced, because a text that is
only slow should not cost a warm-up of seconds. A worker that is being replaced takes no questions.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tuneloop.registry.errors import Unavailable
from tuneloop.serve.gateway.worker import Target, Worker

log = logging.getLogger(__name__)
HUNG_S = 10.0
WARM_WITHIN_S = 30.0  # the first worker, as a rule: 3 s, and 20 s on slow machines
_AGAIN_S = 1.0  # between two tries to start a worker that does not start


class QueueFull(Unavailable):
    """As many wait already as may."""


class TooLate(Unavailable):
    """There was no answer in time; `coming` is the one that a worker is at work on, if one is."""

    def __init__(self, message: str, coming: asyncio.Future[object] | None = None) -> None:
        super().__init__(message)
        self.coming = coming


class Pool:
    """Some workers; used on one event loop."""

    def __init__(self, name: str, target: Target, size: int, most_waiting: int, hung_s: float = HUNG_S) -> None:
        """`most_waiting` counts those that are being answered too."""
        self._workers = [Worker(name, target) for _ in range(size)]
        self._name = name
        self._most_waiting = most_waiting
        self._hung_s = hung_s
        self._waiting = 0
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._warm = asyncio.Event()  # one of them is, or has been
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the workers, once."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            for worker in self._workers:
                self._bring(worker)

    async def ask(self, question: object, timeout_s: float) -> object:
        """An answer. For the first worker one waits `WARM_WITHIN_S` besides, or `timeout_s` if that is longer.

        Raises:
            QueueFull: too many wait already.
            TooLate: there was none within `timeout_s`.
            Unavailable: the worker failed.
        """
        if self._waiting >= self._most_waiting:
            raise QueueFull(f"{self._waiting} wait for the {self._name} already")
        self._waiting += 1
        asked: asyncio.Future[object] | None = None
        try:
            if not self._warm.is_set():
                self.start()
                await self._first_warm(max(timeout_s, WARM_WITHIN_S))
            until = time.monotonic() + timeout_s
            asked = asyncio.get_running_loop().run_in_executor(self._threads, self._one, question, until)
            return await self._within(timeout_s, asked)
        finally:
            self._waiting -= 1
            asked = None  # a failure's traceback would stand in a cycle with it, and hold the request

    async def _within(self, timeout_s: float, asked: asyncio.Future[object]) -> object:
        asked.add_done_callback(_heard)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(asked)
        except TimeoutError:
            raise TooLate(f"the {self._name} gave no answer within {timeout_s:g} s", asked) from None
        except asyncio.CancelledError:  # whoever asked has gone
            asked.cancel()
            raise
        finally:
            del asked

    async def _first_warm(self, within_s: float) -> None:
        try:
            await asyncio.wait_for(self._warm.wait(), within_s)
        except TimeoutError:
            raise TooLate(f"no {self._name} was warm within {within_s:g} s") from None

    def stop(self) -> None:
        """End the workers; waits for them."""
        self._stopping.set()
        for worker in self._workers:
            worker.stop()
            self._free.put(worker)  # whoever waits for one hears that it has been stopped
        self._threads.shutdown(cancel_futures=True)

    def _one(self, question: object, until: float) -> object:
        try:
            worker = self._free.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise TooLate(f"no {self._name} was free in time") from None
        try:
            answer = worker.ask(question, self._hung_s)
        except BaseException as error:
            log.error("%s", error)
            self._bring(worker)
            raise
        self._free.put(worker)
        return answer

    def _bring(self, worker: Worker) -> None:
        """Let a worker take questions once it is warm."""
        threading.Thread(target=self._warm_up, args=(worker,), name=f"{self._name} start", daemon=True).start()

    def _warm_up(self, worker: Worker) -> None:
        while not self._stopping.is_set():
            try:
                worker.warm_up()
            except Exception as error:  # noqa: BLE001 (said, and tried again: a lost worker would never come back)
                if not self._stopping.is_set():
                    log.error("%s", error)
                self._stopping.wait(_AGAIN_S)
                continue
            self._free.put(worker)
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._warm.set)
            return


def _heard(answer: asyncio.Future[object]) -> None:
    """A failure that nobody waits for any more is logged where it happens."""
    if not answer.cancelled():
        answer.exception()
