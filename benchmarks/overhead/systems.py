"""The systems under load, each a process (or a tree of them) held on one core, in front of the same stub engine.

Our gateway runs as it does in production: a registry on SQLite, a key that is checked, a route of two arms that keys
are assigned to, metrics, and a record of every request. The peers do less: nginx and vllm-router only pass on,
LiteLLM checks one master key.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from overhead.engine import nginx_engine, nginx_frame
from tuneloop.registry import Registry
from tuneloop.registry.nouns import AdapterState, Arm, EngineState
from tuneloop.registry.settings import RegistrySettings

PYTHON = Path(sys.executable)
MASTER_KEY = "sk-benchmark"
ARMS = (Arm(version=2, weight_bp=2_000), Arm(version=1, weight_bp=8_000))


@dataclass
class System:
    """One address to send requests to, and the processes behind it."""

    name: str
    port: int
    folder: Path
    model: str = "bot@1"
    key: str = MASTER_KEY
    processes: list[psutil.Process] = field(default_factory=list)

    def _tree(self) -> Iterator[psutil.Process]:
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                yield process
                yield from process.children(recursive=True)

    def cpu_s(self) -> float:
        """CPU seconds its processes have used."""
        total = 0.0
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_mb(self) -> float:
        """Memory of its own (what processes share counts by its part)."""
        total = 0
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 1e6

    def metric(self, series: str) -> float:
        """One of our gateway's own numbers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as response:
            for line in response.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name == series:
                    return float(value)
        return 0.0


class Stage:
    """Starts systems in front of two stub engines, and ends them."""

    def __init__(self, stack: ExitStack, folder: Path, *, load_core: int, system_core: int) -> None:
        self._stack = stack
        self._folder = folder
        self._load_core, self._core = load_core, system_core
        self.engine = System("direct", free_port(), self._made("engine"))
        self.streams_engine = System("direct", free_port(), self._made("streams"))
        configuration = nginx_engine(self.engine.port, self.engine.folder)
        self._start(self.engine, ["nginx", "-c", configuration], core=load_core)
        script = Path(__file__).with_name("engine.py")
        self._start(self.streams_engine, [PYTHON, script, str(self.streams_engine.port)], core=load_core)
        for engine in (self.engine, self.streams_engine):
            until(lambda engine=engine: answers(engine, "/v1/models"), 10, f"the stub engine {engine.folder}")  # type: ignore[misc]

    def direct(self, *, streams: bool = False) -> System:
        """The engine alone."""
        return self._engine(streams)

    def peer(self, name: str, python: Path) -> Callable[..., System]:
        """How to start a peer that lives in an environment of its own."""
        return partial({"vllm-router": self.vllm_router, "litellm": self.litellm}[name], python)

    def gateway(self, *, streams: bool = False, name: str = "tuneloop", **variables: str) -> System:
        """Our gateway, with auth, assignment, metrics and records."""
        engine = self._engine(streams)
        system = System(name, free_port(), self._made(f"{name}-{'streams' if streams else 'whole'}"), model="bot")
        registry = self._stack.enter_context(Registry.open(RegistrySettings(home=system.folder / "home")))
        system.key, _ = registry.keys.new("benchmark", by="benchmark")
        registry.routes.write("bot", ARMS, by="benchmark", reason="benchmark", expected_revision=0)
        self._beat(registry, f"http://127.0.0.1:{engine.port}")
        environment = {
            "TUNELOOP_HOME": str(system.folder / "home"),
            "TUNELOOP_GATEWAY_PORT": str(system.port),
            "TUNELOOP_GATEWAY_ID": "benchmark",
            "TUNELOOP_GATEWAY_RECORD_TEXT": "none",
        }
        self._start(system, [PYTHON.with_name("tuneloop"), "gateway"], environment | variables)
        until(lambda: answers(system, "/readyz"), 60, "the gateway")
        return system

    def nginx(self, *, streams: bool = False) -> System:
        """The floor: bytes passed on by C."""
        engine = self._engine(streams)
        system = System("nginx", free_port(), self._made(f"nginx-{'streams' if streams else 'whole'}"))
        (system.folder / "proxy.conf").write_text(
            nginx_frame(
                system.folder,
                "proxy",
                f"""
    upstream engine {{ server 127.0.0.1:{engine.port}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{system.port} backlog=4096;
        client_max_body_size 0;
        client_body_buffer_size 256k;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header connection "";
            proxy_buffering off;
        }}
    }}""",
            )
        )
        self._start(system, ["nginx", "-c", system.folder / "proxy.conf"])
        until(lambda: answers(system, "/v1/models"), 10, "nginx")
        return system

    def vllm_router(self, python: Path, *, streams: bool = False) -> System:
        """The Rust router of the vLLM project."""
        engine = self._engine(streams)
        system = System("vllm-router", free_port(), self._made(f"router-{'streams' if streams else 'whole'}"))
        command: list[str | Path] = [python.with_name("vllm-router"), "--host", "127.0.0.1", "--port", str(system.port)]
        command += ["--worker-urls", f"http://127.0.0.1:{engine.port}", "--policy", "round_robin"]
        command += ["--log-level", "error", "--prometheus-port", str(free_port())]
        command += ["--max-concurrent-requests", "8192"]
        self._start(system, command)
        until(lambda: answers(system, "/health"), 60, "vllm-router")
        return system

    def litellm(self, python: Path, *, streams: bool = False) -> System:
        """LiteLLM's proxy as its own advice tunes it: production mode, errors only in the log, no data base."""
        engine = self._engine(streams)
        system = System("litellm", free_port(), self._made(f"litellm-{'streams' if streams else 'whole'}"))
        (system.folder / "config.yaml").write_text(
            f"""model_list:
  - model_name: bot@1
    litellm_params: {{model: "openai/bot@1", api_base: "http://127.0.0.1:{engine.port}/v1", api_key: "none"}}
general_settings: {{master_key: "{MASTER_KEY}"}}
litellm_settings: {{telemetry: false, request_timeout: 60}}
"""
        )
        command: list[str | Path] = [
            python.with_name("litellm"),
            "--config",
            system.folder / "config.yaml",
            "--host",
            "127.0.0.1",
        ]
        command += ["--port", str(system.port), "--num_workers", "1"]
        variables = {
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_PROXY": "127.0.0.1",
        }
        self._start(system, command, variables)
        until(lambda: answers(system, "/health/liveliness"), 120, "LiteLLM")
        return system

    def _engine(self, streams: bool) -> System:
        return self.streams_engine if streams else self.engine

    def _made(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True)
        return folder

    def _start(
        self,
        system: System,
        command: Sequence[str | Path],
        variables: dict[str, str] | None = None,
        core: int | None = None,
    ) -> None:
        pinned = ["taskset", "-c", str(self._core if core is None else core), *map(str, command)]
        with (system.folder / "log").open("w") as log:
            process = subprocess.Popen(
                pinned, env=os.environ | (variables or {}), stdout=log, stderr=log, start_new_session=True
            )
        system.processes.append(psutil.Process(process.pid))

        def end() -> None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        self._stack.callback(end)

    def _beat(self, registry: Registry, url: str) -> None:
        ended = threading.Event()
        names = [f"bot@{arm.version}" for arm in ARMS]

        def beat() -> None:
            while True:
                registry.fleet.beat_engine(
                    EngineState(
                        id="stub",
                        url=url,
                        base="base",
                        base_digest="sha256:base",
                        template_digest="sha256:template",
                        state="ready",
                        adapters=dict.fromkeys(names, AdapterState.READY),
                        max_loras=6,
                        max_lora_rank=16,
                        at=registry.clock(),
                    )
                )
                if ended.wait(1.0):
                    return

        thread = threading.Thread(target=beat)
        thread.start()
        self._stack.callback(thread.join, 10)
        self._stack.callback(ended.set)


@contextmanager
def used(system: System) -> Iterator[Callable[[], float]]:
    """How much CPU (as a share of one core) a system has used inside the block; read it after the block."""
    cpu, began = system.cpu_s(), time.perf_counter()
    found = [0.0]
    yield lambda: found[0]
    found[0] = (system.cpu_s() - cpu) / (time.perf_counter() - began)


def answers(system: System, path: str) -> bool:
    """Whether a GET is answered with 200."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{system.port}{path}", headers={"authorization": f"Bearer {system.key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 (always http)
            return bool(response.status == 200)
    except OSError:
        return False


def until(found: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for something true."""
    deadline = time.monotonic() + timeout_s
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not start within {timeout_s:g} s; its log lies beside its configuration")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
