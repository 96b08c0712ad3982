"""The settings of the serving processes, for `tuneloop config`."""

from __future__ import annotations

from tuneloop.registry.settings import Section
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.gateway.settings import GatewaySettings

SETTINGS: tuple[type[Section], ...] = (GatewaySettings, EngineSettings)
