"""Takes the steps of the plan: fetches, checks, loads, warms, drains and unloads adapters, one load at a time
and, while this engine serves, at its turn among the engines of its base.

Each step ends in a new `Held`; a refusal becomes `failed` with its reason and is tried again with growing pauses, but
not an adapter that vLLM died of twice: each death ends everybody's answers. Files are never deleted while vLLM may read
them, which it may as long as it lives.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.nouns import AdapterState, Version
from tuneloop.registry.versions import adapters
from tuneloop.registry.versions.signing.bundle import verifier
from tuneloop.serve.background import step_back
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.launch import check_room
from tuneloop.serve.engine.reconcile import LONGEST_RETRY_S, Action, Held, Step, View, plan, settled
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.turn import LoadTurn
from tuneloop.serve.engine.wanted import RegistryWatch, Sight

_WARM_S = 60.0
_LONGEST_REFETCH_S = 20.0  # what a person can mend without this engine's help, by signing a version for example
_FETCHES = 4  # at a time
STEPS_BACK = 10  # that fetching and checking come after vLLM
_DEATHS = 2  # of vLLM at one adapter's loading, before that adapter is given up


class Keeper:
    """The adapters of one engine: `held` is what the heartbeat tells, `ready` whether a started vLLM has them all."""

    def __init__(
        self,
        settings: EngineSettings,
        limits: adapters.Limits,
        client: EngineClient,
        watch: RegistryWatch,
        *,
        base: str,
        root: Path,
        say: Callable[[str], None],
        turn: LoadTurn,
    ) -> None:
        self._turn = turn
        self._settings = settings
        self._limits = limits
        self._client = client
        self._watch = watch
        self._base = base
        self._root = root
        self._say = say
        self.changed = asyncio.Event()  # set at every change of `held` or `ready`
        self.due = asyncio.Event()  # set when a step need not wait: a fetch has ended
        self._fetches: dict[str, asyncio.Task[None]] = {}
        # Of its own: a fetch may hang for minutes, and vLLM's tokens come first.
        self._threads = ThreadPoolExecutor(_FETCHES, "fetch", initializer=step_back, initargs=(STEPS_BACK,))
        self._at_work = ""  # the adapter being loaded or warmed: the one to blame if vLLM dies now
        self._deaths: Counter[str] = Counter()  # version name → lives of vLLM that ended with its loading
        self.held: dict[str, Held] = {}
        self.ready = False

    def prepare(self) -> None:
        """Import what verifies signatures (half a second of a core) before anybody streams."""
        self._threads.submit(verifier)

    def reborn(self) -> None:
        """A new vLLM has started, with nothing loaded: bring everything in again before `ready` is said."""
        self.ready = False
        if self._at_work:
            self._deaths[self._at_work] += 1
            self._at_work = ""
        self.held = {
            name: held if held.state is AdapterState.FETCHING else Held(AdapterState.LOADING, held.path)
            for name, held in self.held.items()
            if held.state is AdapterState.FETCHING or held.path is not None
        }
        for name, deaths in self._deaths.items():
            if deaths >= _DEATHS:
                reason = (
                    f"vLLM died {deaths} times while it loaded this adapter; take it off the route, or train it anew"
                )
                self._say(f"{name} is given up: {reason}")
                self.held[name] = Held(
                    AdapterState.FAILED, since_s=time.monotonic(), retry_at_s=math.inf, reason=reason
                )
        self.changed.set()

    async def step(self, sight: Sight) -> None:
        """One pass: plan against what vLLM has now, then do it.

        Raises:
            Unavailable: vLLM does not answer; the next pass goes on from there.
        """
        versions = {version.name: version for version in sight.wanted}
        loaded = set(await self._client.models()) - {self._base}
        view = View(
            wanted=tuple(versions),
            loaded=frozenset(loaded),
            held=dict(self.held),
            gateways=sight.gateways,
            usable_slots=self._settings.usable_slots,
            keep_cold=self._settings.keep_cold,
            drain_timeout_s=self._settings.drain_timeout_s,
            now_s=time.monotonic(),
        )
        if not self.ready and settled(view):
            self.ready = True
            names = [name for name, held in self.held.items() if held.state is AdapterState.READY]
            self._say(f"ready with {', '.join(sorted(names)) or 'no adapters'}")
            self.changed.set()
        actions = plan(view)
        for action in (action for action in actions if action.step is not Step.LOAD):
            await self._do(action, versions.get(action.name), loaded)
            self.changed.set()
        loads = [action for action in actions if action.step is Step.LOAD]
        if not (loads and self.ready):
            self._turn.unasked()
        if loads:
            async with self._turn.taken() if self.ready else nullcontext(enter_result=True) as may_load:
                for action in loads if may_load else ():
                    await self._do(action, versions.get(action.name), loaded)
                    self.changed.set()

    async def close(self) -> None:
        """End fetches that are under way."""
        for task in self._fetches.values():
            task.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def collect(self, sight: Sight | None) -> None:
        """Delete fetched files that nothing wants; only while no vLLM runs."""
        if sight is None:
            return
        kept = {version.artifact_digest.removeprefix("sha256:") for version in sight.wanted}
        for found in self._root.glob("*"):  # a version's folder, and its signature beside it
            if found.name.partition(".")[0] in kept:
                continue
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()

    async def _do(self, action: Action, version: Version | None, loaded: set[str]) -> None:
        name, held = action.name, self.held.get(action.name, Held(AdapterState.LOADING))
        if action.step is Step.FETCH and version is not None:
            self.held[name] = Held(AdapterState.FETCHING, failures=held.failures, reason=held.reason)
            self._fetches[name] = asyncio.create_task(self._fetch(version))
        elif action.step is Step.LOAD:
            await self._load(name, held, loaded)
        elif action.step is Step.WARM:
            await self._warm(name, held, 0.0, loaded)
        elif action.step is Step.RESUME:
            self.held[name] = replace(held, state=AdapterState.READY, since_s=time.monotonic())
            self._say(f"{name} is wanted again")
        elif action.step is Step.DRAIN:
            self.held[name] = replace(held, state=AdapterState.DRAINING, since_s=time.monotonic())
            self._say(f"draining {name}: no route names it any more")
        elif action.step is Step.UNLOAD:
            await self._client.unload(name)
            loaded.discard(name)
            self.held.pop(name, None)
            self._say(f"unloaded {name}" + (f" ({action.reason})" if action.reason else ""))
        elif action.step is Step.FORGET:
            self.held.pop(name, None)
            self._deaths.pop(name, None)
        else:
            self._fail(name, held, action.reason)

    async def _fetch(self, version: Version) -> None:
        failures, began = self.held[version.name].failures, time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            path = await loop.run_in_executor(self._threads, self._fetch_and_check, version)
            self._say(f"fetched and checked {version.name} in {time.monotonic() - began:.3f} s")
            self.held[version.name] = Held(AdapterState.LOADING, path, time.monotonic(), failures)
        except Exception as error:  # noqa: BLE001 (MLflow and disks fail in many ways; the reason is kept, said and retried)
            self._fail(version.name, self.held[version.name], str(error), longest_s=_LONGEST_REFETCH_S)
        finally:
            self._fetches.pop(version.name, None)
            self.changed.set()
            self.due.set()

    def _fetch_and_check(self, version: Version) -> Path:
        path = self._watch.fetch(version, self._root).resolve()
        adapters.check(path, version, self._limits)
        return path

    async def _load(self, name: str, held: Held, loaded: set[str]) -> None:
        assert held.path is not None, f"{name} is to be loaded but was never fetched"
        began = time.monotonic()
        try:
            check_room(self._settings, len(loaded))
            await self._blamed(name, self._client.load(name, held.path))
        except InvalidInput as error:
            self._fail(name, held, str(error))
            return
        loaded.add(name)
        self.held[name] = replace(held, state=AdapterState.LOADING)
        await self._warm(name, held, time.monotonic() - began, loaded)

    async def _warm(self, name: str, held: Held, load_s: float, loaded: set[str]) -> None:
        began = time.monotonic()
        try:
            await self._blamed(name, self._client.one_token(name, _WARM_S))
        except InvalidInput as error:
            self._fail(name, held, str(error))
            await self._client.unload(name)  # its slot is another's while it waits to be tried again
            loaded.discard(name)
            return
        self._deaths.pop(name, None)
        self.held[name] = Held(AdapterState.READY, held.path, time.monotonic())
        self._say(f"loaded {name} in {load_s:.3f} s, warmed in {time.monotonic() - began:.3f} s")

    async def _blamed(self, name: str, work: Awaitable[None]) -> None:
        """Do the work; whose it was stays known until vLLM has answered and lives.

        Raises:
            InvalidInput: vLLM refuses it and is well.
            Unavailable: vLLM does not answer, or dies of it: its answers to what was running are errors, too.
        """
        self._at_work = name
        try:
            await work
        except InvalidInput as error:
            if not (await self._client.pulse()).healthy:
                raise Unavailable(str(error)) from None
            self._at_work = ""
            raise
        self._at_work = ""

    def _fail(self, name: str, held: Held, reason: str, *, longest_s: float = LONGEST_RETRY_S) -> None:
        if reason != held.reason:
            self._say(f"{name} failed, trying again from time to time: {reason}")
        self.held[name] = held.failed(reason, time.monotonic(), longest_s=longest_s)
