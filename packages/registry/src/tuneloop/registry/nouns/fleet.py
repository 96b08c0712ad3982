"""Heartbeats of engines and gateways."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime

from tuneloop.registry.nouns.base import Noun


class AdapterState(StrEnum):
    """Where an adapter stands on one engine; only `ready` and `draining` may carry traffic."""

    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class EngineState(Noun):
    """An engine agent's heartbeat: what its engine is and which adapters it can serve now."""

    id: str
    url: str
    base: str
    base_digest: str
    template_digest: str
    state: Literal["starting", "ready", "down"]
    adapters: dict[str, AdapterState] = {}  # version name → state
    detail: str = ""
    pins: tuple[str, ...] = ()  # versions that it keeps loaded whether or not a route names them
    max_loras: int
    max_lora_rank: int
    at: AwareDatetime

    def serves(self, name: str) -> bool:
        """Whether requests for this version name may be sent here."""
        return self.state == "ready" and self.adapters.get(name) in {AdapterState.READY, AdapterState.DRAINING}


class GatewayState(Noun):
    """A gateway's heartbeat: which revision of each route it applies, and what it could not record."""

    id: str
    url: str
    applied: dict[str, int]  # model → route revision
    in_flight: dict[str, int]  # "engine id|version name" → requests
    dropped_records: int
    at: AwareDatetime
