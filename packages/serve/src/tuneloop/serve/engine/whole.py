"""An engine for one version of whole weights: what `tuneloop engine --version` serves, instead of a base with adapters.

The version is fetched and verified before vLLM starts, and vLLM serves it under its name, so that a gateway sees no
difference between it and an adapter. What was fetched is remembered: such an engine starts again while the registry is
away. Nothing is loaded or unloaded while it runs; who wants it no more ends it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.files import OWNER_ONLY, write_atomically
from tuneloop.registry.nouns import AdapterState, Version, parse_version_name
from tuneloop.registry.versions.artifacts import fetched_name, folder_digest
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.reconcile import Held
from tuneloop.serve.engine.wanted import FleetMember, Sight

MEMORY = "version.json"
_WARM_S = 60.0


def fetch_whole(
    name: str, open_registry: Callable[[], Registry], home: Path, *, say: Callable[[str], None]
) -> tuple[Version, Path]:
    """The version and its verified folder; of the last start's, where the registry is away and the files are unchanged.

    Raises:
        InvalidInput: there is no such version of whole weights, or its files are not those that were published.
        Unavailable: the registry is away, and no earlier start has left the version here.
    """
    model, number = parse_version_name(name)
    root = home / "versions"
    try:
        with open_registry() as registry:
            version = registry.versions.get(model, number)
            if version.kind != "full":
                raise InvalidInput(
                    f"{name} is an adapter; start an engine with its base, `tuneloop engine --base FOLDER`, and it is "
                    "loaded when a route names it"
                )
            folder = registry.versions.fetch(version, root).resolve()
    except Unavailable as error:
        kept = _remembered(name, home, root)
        if kept is None:
            raise
        say(f"the registry is away, serving what was fetched before: {error}")
        return kept
    write_atomically(home / MEMORY, version.model_dump_json().encode(), mode=OWNER_ONLY)
    for found in root.iterdir():  # gigabytes of what this engine served before; no vLLM reads them now
        if found.name.partition(".")[0] != fetched_name(version):
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    return version, folder


def _remembered(name: str, home: Path, root: Path) -> tuple[Version, Path] | None:
    try:
        version = Version.model_validate_json((home / MEMORY).read_bytes())
        folder = (root / fetched_name(version)).resolve()
        same = version.name == name and folder.is_dir() and folder_digest(folder) == version.artifact_digest
    except (OSError, ValidationError, InvalidInput):
        return None
    return (version, folder) if same else None


class WholeKeeper:
    """What the agent asks its keeper, of an engine that holds one version for good."""

    def __init__(
        self,
        version: str,
        client: EngineClient,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version = version
        self._client = client
        self._say = say
        self._clock = clock
        self.changed = asyncio.Event()
        self.due = asyncio.Event()
        self.held = {version: Held(AdapterState.LOADING)}
        self.ready = False

    def prepare(self) -> None:
        """Nothing: it is verified already."""

    def collect(self, _: Sight | None) -> None:
        """Nothing: what lies here is served."""

    def reborn(self) -> None:
        """A new vLLM has started: it is warmed before `ready` is said."""
        self.ready = False
        self.held = {self._version: Held(AdapterState.LOADING)}
        self.changed.set()

    async def step(self, _: Sight) -> None:
        """Warm what vLLM has loaded at its start; what it refuses is tried again with growing pauses.

        Raises:
            Unavailable: vLLM does not answer.
        """
        held, began = self.held[self._version], self._clock()
        if self.ready or began < held.retry_at_s:
            return
        try:
            await self._client.one_token(self._version, _WARM_S)
        except InvalidInput as error:
            if str(error) != held.reason:
                self._say(f"{self._version} failed, trying again from time to time: {error}")
            self.held = {self._version: held.failed(str(error), self._clock())}
        else:
            self.held = {self._version: Held(AdapterState.READY, since_s=self._clock())}
            self.ready = True
            self._say(f"ready with {self._version}, warmed in {self._clock() - began:.3f} s")
        self.changed.set()

    async def close(self) -> None:
        """Nothing is under way."""


class WholeWatch(FleetMember):
    """What the agent asks the registry, of an engine whose version no route can change: to be on the fleet's list."""

    def __init__(self, open_registry: Callable[[], Registry], *, engine_id: str, version: Version) -> None:
        super().__init__(open_registry, engine_id=engine_id)
        self._version = version

    def remembered(self) -> Sight:
        """Nothing is wanted but what is there."""
        return Sight(())

    def look(self) -> Sight:
        """Whether a route names the version, which on call may want to know.

        Raises:
            Unavailable: the database does not answer.
        """
        route = self.registry.routes.current_all().get(self._version.model)
        named = route is not None and any(arm.version == self._version.version for arm in route.arms)
        return Sight((), {} if named else {self._version.name: "no route names it"})
