"""Keeps one vLLM alive: starts it, watches its progress, ends and restarts it when it is dead or hung.

The first start must succeed (a wrong base or flag is the operator's to mend); later ones are retried for ever, with
growing pauses of at most a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tuneloop.registry.errors import Conflict, InvalidInput, Unavailable
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.health import HealthWatch, Verdict
from tuneloop.serve.engine.launch import Launch
from tuneloop.serve.engine.ports import ensure_port_free
from tuneloop.serve.engine.process import EngineProcess
from tuneloop.serve.engine.settings import STOP_MARGIN_S, EngineSettings

_LOOK_EVERY_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LONG_LIFE_S = 600.0  # a run this long forgives the failures before it


class Supervisor:
    """One vLLM over its lives. `starts` counts them, so that others notice that what they loaded is gone."""

    def __init__(
        self,
        settings: EngineSettings,
        launch: Launch,
        client: EngineClient,
        *,
        base: str,
        home: Path,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._launch = launch
        self._home = home
        self._client = client
        self._base = base
        self._say = say
        self._process: EngineProcess | None = None
        self._was_up = False
        self.starts = 0
        self.phase: Literal["starting", "up", "down"] = "starting"
        self.trouble = ""  # why it went down, until it is up again

    @property
    def up(self) -> bool:
        """Whether vLLM answers."""
        return self.phase == "up"

    async def keep(self) -> None:
        """Start vLLM and keep it running until cancelled.

        Raises:
            Unavailable: the very first start failed; carries the end of vLLM's log.
            Conflict: the port is taken.
        """
        failures = 0
        while True:
            try:
                lived_from = time.monotonic()
                await self._start()
                lived_from = time.monotonic()
                end = await self._watch()
            except (Unavailable, Conflict) as error:
                if not self._was_up:
                    raise
                end = str(error)
            self.phase = "down"
            self.trouble = end
            await self._end()
            failures = 1 if time.monotonic() - lived_from > _LONG_LIFE_S else failures + 1
            pause_s = min(2.0 ** (failures - 1), _LONGEST_PAUSE_S)
            self._say(f"{end}; restarting in {pause_s:.0f} s (failure {failures} in a row)")
            await asyncio.sleep(pause_s)

    async def stop(self) -> None:
        """Let vLLM finish what is running, then end it for certain."""
        patience_s = STOP_MARGIN_S + (self._settings.drain_timeout_s if self.up else 0.0)
        self.phase = "down"
        if self._process is not None:
            await asyncio.to_thread(self._process.stop, patience_s)
            self._process = None

    async def _start(self) -> None:
        ensure_port_free(self._settings.host, self._settings.port)
        began = time.monotonic()
        self.starts += 1
        self.phase = "starting"
        self._process = process = EngineProcess(self._launch, self._home)
        self._say(f"starting vLLM for {self._base} on {self._settings.local_url} (log: {process.log})")
        while not (await self._answers() and process.answers_on(self._settings.port)):
            waited_s = time.monotonic() - began
            how = process.ended() or (
                f"vLLM does not answer after {waited_s:.0f} s" if waited_s > self._settings.start_timeout_s else None
            )
            if how:
                name = self._settings.engine_id
                raise Unavailable(f"engine {name} cannot start: {how}; {process.log} ends with\n{process.last_lines()}")
            await asyncio.sleep(0.5)
        self.trouble = ""
        self.phase = "up"
        self._was_up = True
        self._say(f"vLLM is up after {time.monotonic() - began:.0f} s")

    async def _answers(self) -> bool:
        try:
            return (await self._client.pulse()).healthy and self._base in await self._client.models()
        except Unavailable:
            return False  # not yet

    async def _watch(self) -> str:
        """Watch until vLLM is dead or hung; why, in words."""
        assert self._process is not None
        health = HealthWatch(self._settings.hang_timeout_s, time.monotonic())
        asking: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                if how := self._process.ended():
                    return how
                verdict = health.observe(await self._client.pulse(), time.monotonic())
                if verdict is Verdict.DEAD:
                    return "vLLM says that its engine is dead"
                if verdict is Verdict.HUNG:
                    return f"vLLM made no token in {self._settings.hang_timeout_s:.0f} s: hung"
                if verdict is Verdict.ASK and (asking is None or asking.done()):
                    asking = asyncio.create_task(self._ask())
        finally:
            if asking is not None:
                asking.cancel()

    async def _ask(self) -> None:
        with suppress(InvalidInput, Unavailable):  # what counts is whether tokens move, which the watch sees
            await self._client.one_token(self._base, self._settings.hang_timeout_s)

    async def _end(self) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.kill)
            self._process = None
