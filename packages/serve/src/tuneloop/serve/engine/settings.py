"""What an engine agent can be told; section `[engine]`, variables `TUNELOOP_ENGINE_…`."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import parse_version_name
from tuneloop.registry.settings import Section
from tuneloop.serve.urls import http_url

EngineDtype = Literal["auto", "float32", "bfloat16", "float16"]
# vLLM's own CPU kernels read the last slot for base requests; it stays empty in case the plugin is ever not there.
RESERVED_SLOTS = 1
STOP_MARGIN_S = 10.0  # for vLLM to end once nothing is running
_LEAVE_S = 10.0  # for its processes to be gone and the last heartbeat to be sent
_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_EVERYWHERE = {"0.0.0.0", "::", ""}  # noqa: S104 (recognised here, never bound by default)


class EngineSettings(Section):
    """One engine: its base model, where it listens, how much it holds, and how patient its agent is."""

    section: ClassVar[str] = "engine"

    id: str = ""  # default: <host name>-<port>
    base: str = ""  # folder of the base model
    version: str = ""  # instead of a base: a registered version of whole weights, MODEL@N
    host: str = "127.0.0.1"  # vLLM has no authentication of its own: keep it on a private address
    port: int = Field(default=8101, ge=1, le=65_535)
    advertise_url: str = ""  # what gateways call; default: http://<host>:<port>
    python: str = ""  # python of the engine environment; default: .venv-engine/bin/python, looked for upwards
    dtype: EngineDtype = "auto"  # auto: the base's own on a GPU, what the machine is fast in on a CPU
    max_loras: int = Field(default=6, ge=0)  # slots; one stays reserved. 0: the base alone, which takes less
    max_cpu_loras: int = 16
    pins: tuple[str, ...] = ()  # versions, MODEL@N, that stay loaded whether or not a route names them
    keep_cold: int = Field(default=0, ge=0)  # adapters that left the routes and stay loaded while there is room
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    # How the base writes tool calls, by vLLM's name of it, such as hermes; vLLM refuses requests with tools without.
    tool_call_parser: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    max_model_len: int = Field(default=1024, ge=16)
    max_num_seqs: int = Field(default=16, ge=1)
    kv_cache_gib: int = Field(default=1, ge=1)  # machines without a GPU
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1)  # machines with one
    start_timeout_s: float = Field(default=300, gt=0)
    reconcile_every_s: float = Field(default=1.0, gt=0, le=5)
    drain_timeout_s: float = Field(default=60, ge=0)  # how long an unwanted adapter waits for the gateways
    hang_timeout_s: float = Field(default=60, gt=0)  # no token in this time, asked for or not: hung

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.version:
            if self.base:
                raise ValueError(f"give base, for adapters, or version, for the whole weights of {self.version}")
            parse_version_name(self.version)
        if 0 < self.max_loras <= RESERVED_SLOTS:
            raise ValueError(f"max_loras {self.max_loras} leaves no slot, one stays reserved; give 2, or 0 for none")
        for pin in self.pins:
            parse_version_name(pin)
        if len(self.pins) > self.usable_slots:
            raise ValueError(f"{len(self.pins)} pins need max_loras {len(self.pins) + RESERVED_SLOTS} or more")
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(f"max_cpu_loras {self.max_cpu_loras} is below max_loras {self.max_loras}; raise it")
        if self.id and not _ID.match(self.id):
            raise ValueError(f"id {self.id!r} must be letters, digits, dots, dashes and underscores, at most 63")
        return self

    @property
    def engine_id(self) -> str:
        """The effective id: what gateways and heartbeats call this engine."""
        return self.id or f"{socket.gethostname()[:50]}-{self.port}"

    @property
    def local_url(self) -> str:
        """Where the agent itself reaches vLLM."""
        return http_url("127.0.0.1" if self.host in _EVERYWHERE else self.host, self.port)

    @property
    def public_url(self) -> str:
        """Where gateways reach vLLM."""
        if self.advertise_url:
            return self.advertise_url.rstrip("/")
        return http_url(socket.gethostname() if self.host in _EVERYWHERE else self.host, self.port)

    @property
    def stop_timeout_s(self) -> float:
        """vLLM finishes what is running, for `drain_timeout_s`, and is ended; then the engine leaves the registry."""
        return self.drain_timeout_s + STOP_MARGIN_S + _LEAVE_S

    @property
    def usable_slots(self) -> int:
        """How many adapters may be loaded at a time."""
        return max(0, self.max_loras - RESERVED_SLOTS)

    def base_folder(self) -> Path:
        """The base model's folder.

        Raises:
            InvalidInput: none was given, or it does not exist.
        """
        if not self.base:
            raise InvalidInput(
                "an engine needs a base model: `tuneloop engine --base FOLDER`, or base in [engine]; or, for whole "
                "weights, `tuneloop engine --version MODEL@N`"
            )
        folder = Path(self.base).expanduser().resolve()
        if not folder.is_dir():
            raise InvalidInput(f"base {folder} is not a folder; `tuneloop base RECIPE` makes one")
        return folder

    def engine_python(self, start: Path) -> Path:
        """The engine environment's python: the configured one, the nearest at or above `start`, or the one beside this.

        Raises:
            InvalidInput: there is none.
        """
        if self.python:
            if not (given := Path(self.python).expanduser().absolute()).is_file():
                raise InvalidInput(f"[engine] python {given} does not exist; `make setup` makes .venv-engine")
            return given
        beside = Path(sys.prefix).parent  # where `make setup` made both environments
        for folder in (start, *start.parents, beside):
            if (found := folder / ".venv-engine" / "bin" / "python").is_file():
                return found
        raise InvalidInput(
            f"no engine environment (.venv-engine) at or above {start} or in {beside}; run `make setup` there, or set "
            "TUNELOOP_ENGINE_PYTHON to a python that has vLLM"
        )
