"""The agent's whole way with one adapter, read from its own lines: noticed, fetched and checked, loaded, warmed."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass

from through_vllm.house import House
from tuneloop.registry.nouns import Version

_TIMES = re.compile(r" in ([0-9.]+) s")
FULL = 10_000
UNLOADED_S = 150.0  # the agent waits a minute for its streams


@dataclass(frozen=True)
class Load:
    """One adapter's way; moments are monotonic seconds."""

    asked_at: float  # the route that names it is about to be written
    fetch_at: float
    fetched_at: float
    load_at: float
    ready_at: float
    load_s: float
    warm_s: float

    @property
    def steps_s(self) -> dict[str, float]:
        """Each step's seconds, and the whole way's."""
        return {
            "notice": self.fetch_at - self.asked_at,
            "fetch and check": self.fetched_at - self.fetch_at,
            "turn": self.load_at - self.fetched_at,
            "load": self.load_s,
            "warm": self.warm_s,
            "whole way": self.ready_at - self.asked_at,
        }


async def load(house: House, version: Version, champion: Version) -> Load:
    """Stage a version beside the champion, as `tuneloop route set MODEL 1=10000 2=0` does; wait until it is ready."""
    asked = time.monotonic()
    await asyncio.to_thread(house.route, version.model, {champion.version: FULL, version.version: 0})
    return await loaded(house, version, asked)


async def loaded(house: House, version: Version, asked: float) -> Load:
    """The way of a version that was asked for, once it is ready."""
    ready = await asyncio.to_thread(house.wait_for, f"loaded {version.name} in")
    fetched = await asyncio.to_thread(house.wait_for, f"fetched and checked {version.name} in")
    (fetch_s,), (load_s, warm_s) = (map(float, _TIMES.findall(line.text)) for line in (fetched, ready))
    return Load(
        asked_at=asked,
        fetch_at=fetched.at - fetch_s,
        fetched_at=fetched.at,
        load_at=ready.at - load_s - warm_s,
        ready_at=ready.at,
        load_s=load_s,
        warm_s=warm_s,
    )


async def unload(house: House, version: Version, champion: Version) -> None:
    """Take it off the route again; wait until vLLM has been told to forget it."""
    await asyncio.to_thread(house.route, version.model, {champion.version: FULL})
    await unloaded(house, version)


async def unloaded(house: House, version: Version) -> None:
    """Until vLLM has been told to forget a version, which may be as long as streams of it last."""
    await asyncio.to_thread(house.wait_for, f"unloaded {version.name}", UNLOADED_S)
