"""A real engine agent for tests, and small real adapters for it to serve.

The adapters are random LoRA weights on every linear layer, strong enough to change most answers; they are written as
safetensors directly, because making them with PEFT would import torch for nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import numpy as np
import psutil
from safetensors.numpy import save_file

from tuneloop.registry import Registry
from tuneloop.registry.errors import NotFound
from tuneloop.registry.nouns import Arm, EngineState, Route, Version
from tuneloop.registry.versions.adapters import SERVED_MODULES, base_shapes
from tuneloop.registry.versions.artifacts import base_digest, template_digest
from tuneloop.registry.versions.store import VersionDraft

T = TypeVar("T")
MODEL = "python-helper"
START_TIMEOUT_S = 240.0
ENGINE = (sys.executable, "-m", "tuneloop.cli", "engine")


def write_adapter(folder: Path, base: Path, *, seed: int, rank: int = 8, **config: Any) -> Path:
    """A LoRA adapter on every linear layer of `base`; `config` changes entries of adapter_config.json."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for name, shape in base_shapes(base).items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in SERVED_MODULES:
            out, into = shape
            tensors[f"base_model.model.{layer}.lora_A.weight"] = random.normal(0, 0.04, (rank, into)).astype(np.float32)
            tensors[f"base_model.model.{layer}.lora_B.weight"] = random.normal(0, 0.04, (out, rank)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(SERVED_MODULES),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(said | config))
    return folder


def publish_adapter(registry: Registry, folder: Path, base: Path, **changes: Any) -> Version:
    """The folder as the next version of `python-helper`."""
    fields: dict[str, Any] = {
        "model": MODEL,
        "kind": "adapter",
        "base": base.name,
        "base_digest": base_digest(base),
        "template_digest": template_digest(base),
        "data_digest": "sha256:data",
        "data_rows": 1,
        "recipe_digest": "sha256:recipe",
        "code_commit": "0" * 40,
        "rank": 8,
        "target_modules": SERVED_MODULES,
    }
    draft = VersionDraft(**(fields | changes))
    run_id = registry.versions.start_run(draft.model, name="test", params={})
    version = registry.versions.publish(draft, run_id=run_id, folder=folder)
    registry.versions.end_run(run_id, "FINISHED")
    return version


class EngineAgent:
    """`tuneloop engine` as a process on a registry, in float32 so that tokens can be compared."""

    def __init__(self, registry: Registry, base: Path, home: Path, port: int, *, version: str = "") -> None:
        """With `version`, those whole weights are served instead of the base."""
        self.registry = registry
        self.version = version
        self.base = base
        self.home = home
        self.id = "engine-under-test"
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.events = home / "agent-events.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The agent's process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the agent; returns before vLLM is up."""
        served = {"version": self.version} if self.version else {"base": self.base}
        options = served | {"id": self.id, "port": self.port, "dtype": "float32"}
        command = [*ENGINE]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        with self.events.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {"TUNELOOP_HOME": str(self.home), "TUNELOOP_ENGINE_HANG_TIMEOUT_S": "16"}
                | {"TUNELOOP_ENGINE_TOOL_CALL_PARSER": "hermes"},
            )

    def kill(self) -> None:
        """kill -9 of the agent alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask the agent to leave in order; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(90)

    def state(self) -> EngineState | None:
        """Its live heartbeat."""
        return next((engine for engine in self.registry.fleet.engines() if engine.id == self.id), None)

    def wait_until(self, true: Callable[[EngineState], bool], timeout_s: float = 90.0) -> EngineState:
        """Wait for a heartbeat of which something is true."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state()) is None or not true(state):
            assert self._process is not None
            told = self.said()[-3000:]
            assert self._process.poll() is None, f"the agent ended:\n{told}"
            assert time.monotonic() < deadline, f"not in {timeout_s:.0f} s; {state!r}\n{told}"
            time.sleep(0.1)
        return state

    def wait_ready(self) -> EngineState:
        """Wait until vLLM has started and holds its adapters."""
        return self.wait_until(lambda state: state.state == "ready", START_TIMEOUT_S)

    def route(self, split: Mapping[int, int], model: str = MODEL) -> Route:
        """Write the model's next route: version → basis points, the champion last."""
        try:
            newest = self.registry.routes.current(model).revision
        except NotFound:
            newest = 0
        arms = [Arm(version=version, weight_bp=weight) for version, weight in split.items()]
        return self.registry.routes.write(model, arms, by="test", reason="test", expected_revision=newest)

    def serve(self, split: Mapping[int, int], model: str = MODEL) -> Route:
        """Write a route and wait until the engine serves its versions and no other of that model."""
        route = self.route(split, model)
        names = {f"{model}@{version}" for version in split}
        self.wait_until(
            lambda state: (
                {name for name in state.adapters if name.startswith(f"{model}@")} == names
                and all(map(state.serves, names))
            )
        )
        return route

    def said(self) -> str:
        """Every event the agents of this engine have told so far."""
        return self.events.read_text(encoding="utf-8")

    def vllm(self) -> list[psutil.Process]:
        """The living processes of vLLM: everything below the agent, or left behind in its session."""
        record = self.home / "engines" / self.id / "process.json"
        session = json.loads(record.read_text())["pid"] if record.exists() else -1
        return [process for process in psutil.process_iter() if _session_of(process) == session]

    def models(self) -> set[str]:
        """The adapters vLLM lists."""
        return {name for name in self.get("/v1/models") if name != self.base.name}

    def get(self, path: str) -> list[str]:
        """The ids a GET answers with."""

        async def ask(session: aiohttp.ClientSession) -> list[str]:
            async with session.get(self.url + path) as response:
                return [card["id"] for card in (await response.json())["data"]]

        return asyncio.run(_with_session(ask))

    def complete(self, requests: Sequence[Mapping[str, Any]], *, path: str = "/v1/completions") -> list[dict[str, Any]]:
        """Send all requests at the same time; each must answer 200."""

        async def ask(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
            async def one(body: Mapping[str, Any]) -> dict[str, Any]:
                async with session.post(self.url + path, json=dict(body)) as response:
                    assert response.status == 200, await response.text()
                    answer: dict[str, Any] = await response.json()
                    return answer

            return list(await asyncio.gather(*(one(body) for body in requests)))

        return asyncio.run(_with_session(ask))


async def _with_session(ask: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, T]]) -> T:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        return await ask(session)


def _session_of(process: psutil.Process) -> int:
    try:
        return -2 if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return -2
