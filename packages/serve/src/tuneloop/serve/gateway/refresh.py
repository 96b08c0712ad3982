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
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.fleet import STALE_AFTER_S
from tuneloop.registry.nouns import GatewayState, utc_now
from tuneloop.serve.gateway.link import Link, cause_of
from tuneloop.serve.gateway.look import PARTS, follow, look
from tuneloop.serve.gateway.on_loop import on_loop
from tuneloop.serve.gateway.snapshot import Snapshot

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
        applied: Callable[[Snapshot, bool], None],
        failed: Callable[[str], None],
    ) -> None:
        """`beat` makes the heartbeat, `applied` hears of each view before it is in force, and whether nothing was
        read for some time before; both run on the event loop.

        `failed` hears, on the thread that reads, of every part that a reading left as it was.
        """
        self._link = link
        self._folder = folder
        self._poll_s = poll_s
        self._beat = beat
        self._applied = applied
        self._failed = failed
        self.snapshot: Snapshot | None = None
        self.trouble: Mapping[str, str] = {}  # part → why the view has it as it was known last
        self.no_last_view = f"there is no last known good view in {folder}"  # or why it is of no use
        self.unsaved = ""  # why the view in force is not what a restart would find
        self._told: Mapping[str, str] = {}
        self._lost_models: frozenset[str] = frozenset()
        self._read_at = -math.inf
        self._saved = False
        self._away = False
        self._after_gap = True  # what the next view shows may have happened long before it was read
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
            self.no_last_view = str(error)
            known = None
        if known is not None:
            known.build()
            self._apply(known)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop both threads and take this gateway off the registry's list; waits at most a few seconds."""
        self._stopping.set()
        self._changed.set()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def up(self, within_s: float) -> bool:
        """Whether every part of the view was read, not longer than `within_s` ago."""
        return not self.trouble and time.monotonic() - self._read_at <= within_s

    def _keep_reading(self) -> None:
        while not self._stopping.is_set():
            try:
                self._read()
            except Exception as error:
                if not self.trouble:
                    log.exception("reading the registry failed; the view stays as it is")
                self._has(dict.fromkeys(PARTS, f"a defect of the gateway: {cause_of(error)}"))
            self._stopping.wait(self._poll_s)

    def _read(self) -> None:
        try:
            with self._link.registry() as registry:
                seen = look(registry, utc_now())
        except Unavailable as error:  # the link has logged it; the view stays as it is
            self._away = True
            self._has(dict.fromkeys(PARTS, str(error)))
            return
        if self._away:
            self._away, self._after_gap, self._back_at = False, True, time.monotonic()
        known = self.snapshot
        found = follow(known, seen, spare_engines=time.monotonic() - self._back_at < STALE_AFTER_S)
        self._tell(found.trouble)
        self._has(found.trouble)
        self._lost_models = found.lost_models
        self._read_at = time.monotonic()
        fresh = found.view
        if fresh is None:
            return
        if known is not None and self._saved and fresh.same_as(known):
            self._after_gap = False
            return
        fresh.build()
        self._saved = False  # whatever goes wrong from here on, the next reading tries again
        self._on_loop(lambda: self._apply(fresh))
        self._after_gap = False
        self._changed.set()
        self._save(fresh)

    def _has(self, trouble: Mapping[str, str]) -> None:
        self.trouble = trouble
        for part in trouble:
            self._failed(part)

    def _tell(self, trouble: Mapping[str, str]) -> None:
        """Log what has changed about the parts since this was last called."""
        for part, why in trouble.items():
            if why != self._told.get(part):
                log.error("serving on with the last known %s: %s", part, why)
        for part in self._told.keys() - trouble.keys():
            log.warning("the %s can be read again", part)
        self._told = trouble

    def _save(self, view: Snapshot) -> None:
        try:
            view.save(self._folder)
        except Exception as error:  # noqa: BLE001 (a full disk, what no JSON can hold; said, and tried at every reading)
            if (why := cause_of(error)) != self.unsaved:
                log.error("the last known good view cannot be written to %s: %s", self._folder, why)
            self.unsaved = why
        else:
            self._saved, self.unsaved = True, ""

    def _keep_beating(self) -> None:
        state: GatewayState | None = None
        while not self._stopping.is_set():
            try:
                if self.snapshot is not None:
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
        """The heartbeat; a route that this database does not show is none that can be said to be applied."""
        assert self.snapshot is not None
        state = self._beat(self.snapshot)
        applied = {model: revision for model, revision in state.applied.items() if model not in self._lost_models}
        return state.model_copy(update={"applied": applied})

    def _apply(self, snapshot: Snapshot) -> None:
        self._applied(snapshot, self._after_gap)  # first: no route is in force without its guards, whatever fails
        self.snapshot = snapshot

    def _on_loop(self, call: Callable[[], T]) -> T:
        """Run `call` on the event loop and wait for what it returns."""
        assert self._loop is not None
        return on_loop(self._loop, call)
