"""Keeps the gateway's view of the registry fresh, and tells the registry what the gateway applies and carries.

Two threads: one reads, one beats, so that a slow write never delays a new route. A view is swapped, and the
heartbeat's numbers are taken, on the event loop: a heartbeat that says "revision 8 is applied" counts every request
that was sent under revision 7.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.fleet import STALE_AFTER_S
from tuneloop.registry.nouns import GatewayState, utc_now
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.snapshot import LAST_KNOWN_GOOD, Snapshot

log = logging.getLogger(__name__)
T = TypeVar("T")
BEAT_S = 1.0


class Refresh:
    """The newest view, and the two threads behind it."""

    def __init__(
        self,
        link: Link,
        folder: Path,
        poll_s: float,
        beat: Callable[[Snapshot], GatewayState],
        applied: Callable[[Snapshot], None],
    ) -> None:
        """`beat` makes the heartbeat, `applied` hears of each new view; both run on the event loop."""
        self._link = link
        self._folder = folder
        self._poll_s = poll_s
        self._beat = beat
        self._applied = applied
        self.snapshot: Snapshot | None = None
        self.from_disk = False
        self.distrust = ""  # what the database has forgotten: it is not the one this gateway knows
        self._away = False
        self._back_at = -math.inf  # engines could not beat while the database was away: give them time when it is back
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._changed = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep_reading, name="gateway-refresh", daemon=True),
            threading.Thread(target=self._keep_beating, name="gateway-heartbeat", daemon=True),
        ]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the last known good view if there is one, and begin to read and to beat."""
        self._loop = loop
        try:
            known = Snapshot.load(self._folder)
        except InvalidInput as error:
            log.error("%s", error)
            known = None
        if known is not None:
            self.from_disk = True
            self._apply(known)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop both threads and take this gateway off the registry's list; waits at most a few seconds."""
        self._stopping.set()
        self._changed.set()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _keep_reading(self) -> None:
        while not self._stopping.is_set():
            try:
                self._read()
            except Unavailable:  # the link has logged it; the view stays as it is
                self._away = True
            except Exception:
                log.exception("reading the registry failed; the view stays as it is")
            self._stopping.wait(self._poll_s)

    def _read(self) -> None:
        with self._link.registry() as registry:
            fresh = read_registry(registry)
        known = self.snapshot
        lost = known.lost_in(fresh) if known is not None else ""
        if lost and not self.distrust:
            log.error(
                "the database has lost %s: serving on with the last known routes; if it was replaced on purpose, "
                "stop this gateway, delete %s and start it again",
                lost,
                self._folder / LAST_KNOWN_GOOD,
            )
        self.distrust = lost
        if lost:
            return
        if self._away:
            self._away, self._back_at = False, time.monotonic()
        if known is not None and time.monotonic() - self._back_at < STALE_AFTER_S:
            fresh = fresh.with_engines_of(known)
        if known is not None and not self.from_disk and fresh.same_as(known):
            return
        self._on_loop(lambda: self._apply(fresh))
        self.from_disk = False
        self._changed.set()
        try:
            fresh.save(self._folder)
        except OSError as error:
            log.error("the last known good view cannot be written to %s: %s", self._folder, error)

    def _keep_beating(self) -> None:
        state: GatewayState | None = None
        while not self._stopping.is_set():
            try:
                if self.snapshot is not None and not self.distrust:
                    state = self._on_loop(self._state)
                    with suppress(Unavailable), self._link.registry() as registry:  # the link has logged it
                        registry.fleet.beat_gateway(state)
            except Exception:
                log.exception("the heartbeat failed")
            self._changed.wait(BEAT_S)
            self._changed.clear()
        if state is not None:
            try:
                with self._link.registry() as registry:
                    registry.fleet.forget_gateway(state.id)
            except Unavailable as error:
                log.warning("this gateway stays on the registry's list until its heartbeat is stale: %s", error)

    def _state(self) -> GatewayState:
        assert self.snapshot is not None
        return self._beat(self.snapshot)

    def _apply(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._applied(snapshot)

    def _on_loop(self, call: Callable[[], T]) -> T:
        """Run `call` on the event loop and wait for what it returns."""
        assert self._loop is not None
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(call())
            except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that asked)
                result.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return result.result(timeout=30.0)


def read_registry(registry: Registry) -> Snapshot:
    """The registry as it is now."""
    return Snapshot.of(utc_now(), registry.routes.current_all(), registry.fleet.engines(), registry.keys.all())
