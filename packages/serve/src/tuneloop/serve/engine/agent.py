"""The engine agent: wanted state from the registry, actual state from vLLM, and a heartbeat that tells the difference.

Four loops on one event loop: supervise vLLM, look at the registry, reconcile adapters, send heartbeats. Invariants:
`ready` is said only once every wanted adapter is ready or known to fail; a registry that is away stops nothing, and no
call that hangs holds up a heartbeat, which has a thread of its own.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import EngineState, utc_now
from tuneloop.registry.versions.adapters import Base
from tuneloop.serve.engine.keeper import Keeper
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.supervisor import Supervisor
from tuneloop.serve.engine.wanted import RegistryWatch, Sight
from tuneloop.serve.engine.whole import WholeKeeper, WholeWatch

P = ParamSpec("P")
T = TypeVar("T")
_BEAT_EVERY_S = 1.0
_RESTORE_EVERY_S = 0.1  # while a started engine waits for its adapters


class Agent:
    """Runs until it is told to stop, or vLLM's first start fails."""

    def __init__(
        self,
        settings: EngineSettings,
        base: Base,
        supervisor: Supervisor,
        keeper: Keeper | WholeKeeper,
        watch: RegistryWatch | WholeWatch,
        *,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._base = base
        self._supervisor = supervisor
        self._keeper = keeper
        self._watch = watch
        self._say = say
        self._sight: Sight | None = None
        self._life = 0  # which of vLLM's lives the keeper speaks of
        self._stopping = False
        self._left = False
        self._away = ""  # why the registry cannot be read, while it cannot

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then leave in order.

        Raises:
            Unavailable: vLLM's first start failed.
        """
        try:
            self._sight = self._watch.remembered()
        except InvalidInput as error:
            self._say(str(error))
        self._keeper.collect(self._sight)
        self._keeper.prepare()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        told = asyncio.create_task(stop.wait())
        beat = asyncio.create_task(self._beat_for_ever())
        work = [
            asyncio.create_task(part)
            for part in (self._supervisor.keep(), self._look_for_ever(), self._reconcile_for_ever())
        ]
        done, _ = await asyncio.wait([told, beat, *work], return_when=asyncio.FIRST_COMPLETED)
        self._stopping = True
        self._keeper.changed.set()
        self._say(
            "stopping: no new requests, then vLLM finishes what is running" if told in done else "stopping: failed"
        )
        await _cancel(told, *work)
        await self._keeper.close()
        await self._supervisor.stop()
        self._left = True
        self._keeper.changed.set()
        await beat  # not cancelled: a heartbeat half sent would put the engine back on the list
        with suppress(Unavailable):  # then the heartbeat goes stale by itself
            await asyncio.to_thread(self._watch.leave)
        for task in done - {told}:
            task.result()
        self._say("stopped")

    def state(self) -> EngineState:
        """The heartbeat as it stands now."""
        up = self._supervisor.up and self._life == self._supervisor.starts
        state: Literal["starting", "ready", "down"] = "ready" if self._keeper.ready and up else "starting"
        if self._stopping or self._supervisor.phase == "down":
            state = "down"
        strange = self._sight.strange if self._sight else {}
        said = [self._supervisor.trouble.partition("\n")[0], *(f"{name}: {why}" for name, why in strange.items())]
        said += [f"{name}: {held.reason}" for name, held in self._keeper.held.items() if held.reason]
        return EngineState(
            id=self._settings.engine_id,
            url=self._settings.public_url,
            base=self._base.name,
            base_digest=self._base.digest,
            template_digest=self._base.template_digest,
            state=state,
            adapters={name: held.state for name, held in self._keeper.held.items()},
            detail="; ".join(part for part in said if part),
            pins=self._settings.pins,
            max_loras=self._settings.max_loras,
            max_lora_rank=self._settings.max_lora_rank,
            at=utc_now(),
        )

    async def _beat_for_ever(self) -> None:
        with ThreadPoolExecutor(1, "heartbeat") as thread:
            while not self._left:
                self._keeper.changed.clear()
                await self._with_registry(thread, self._watch.beat, self.state())
                with suppress(TimeoutError):  # time for the next beat, news or not
                    await asyncio.wait_for(self._keeper.changed.wait(), _BEAT_EVERY_S)

    async def _look_for_ever(self) -> None:
        while True:
            sight = await self._with_registry(None, self._watch.look)
            if sight is not None:
                if self._sight is None or sight.wanted != self._sight.wanted:
                    self._keeper.due.set()
                self._sight = sight
            elif self._sight is not None:
                self._sight = replace(self._sight, gateways=None)
            await asyncio.sleep(self._settings.reconcile_every_s)

    async def _reconcile_for_ever(self) -> None:
        told = ""
        while True:
            if self._supervisor.up and self._sight is not None:
                if self._life != self._supervisor.starts:
                    self._life = self._supervisor.starts
                    self._keeper.reborn()
                try:
                    await self._keeper.step(self._sight)
                except Unavailable as error:
                    if self._supervisor.up and str(error) != told:  # when vLLM is down, the supervisor tells why
                        told = str(error)
                        self._say(told)
            with suppress(TimeoutError):  # time for the next step, due or not
                pause_s = self._settings.reconcile_every_s if self._keeper.ready else _RESTORE_EVERY_S
                await asyncio.wait_for(self._keeper.due.wait(), pause_s)
            self._keeper.due.clear()

    async def _with_registry(
        self, threads: Executor | None, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """The call's result, or None while the registry is away, which is said once."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(threads, partial(call, *args, **kwargs))
        except Exception as error:  # noqa: BLE001 (whatever ails database or MLflow, serving goes on; it is said and kept)
            if not self._away:
                self._say(f"the registry is away, serving on with what was wanted last: {error}")
            self._away = str(error)
            return None
        if self._away:
            self._away = ""
            self._say("the registry is back")
        return result


async def _cancel(*tasks: asyncio.Task[None] | asyncio.Task[bool] | asyncio.Task[Literal[True]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
