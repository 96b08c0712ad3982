"""A small world around one gateway: a registry, engines that beat, keys, and the gateway itself on a real socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import openai
import psutil
import uvicorn

from serve.gateway.faulty_engine import FaultyEngine
from tests_support import beat_engine
from tuneloop.registry import Registry
from tuneloop.registry.nouns import AdapterState, Arm, Route, Shadow
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway.server import config, listening
from tuneloop.serve.gateway.settings import GatewaySettings

T = TypeVar("T")
TUNELOOP = Path(sys.executable).with_name("tuneloop")


def until(found: Callable[[], T | Literal[False] | None], timeout_s: float = 30.0, what: str = "") -> T:
    """Wait for something true."""
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or found}"
        time.sleep(0.02)
    return value


@dataclass
class Got:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI-shaped error; fails when it is not one."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert error["message"]
        assert self.headers["x-request-id"].startswith("req_")
        assert isinstance(error, dict)
        return error


@dataclass
class Address:
    """A gateway as its clients see it."""

    url: str
    key: str

    def call(
        self, path: str, body: object = None, *, method: str | None = None, key: str | None = None, **headers: str
    ) -> Got:
        """One plain HTTP request; `body` is JSON unless it is bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {self.key if key is None else key}", "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, sent, method=method)  # noqa: S310 (always http)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 (always http)
                return Got(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Got(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def chat(self, *, model: str = "bot", text: str = "Hello?", unit: str = "", **more: Any) -> Got:
        """One chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": text}]} | more
        return self.call("/v1/chat/completions", body, **({"x_tuneloop_unit": unit} if unit else {}))

    def client(self) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=30)

    def metric(self, series: str) -> float:
        """The value of one series, 0 when it is not there."""
        for line in self.call("/metrics").body.decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return 0.0


@dataclass
class World:
    """Everything around a gateway."""

    registry: Registry
    stack: ExitStack
    engines: dict[str, tuple[FaultyEngine, tuple[str, ...]]] = field(default_factory=dict)
    key: str = ""
    base: dict[str, str] = field(default_factory=dict)  # what heartbeats say of it, where that matters
    bases: dict[str, dict[str, str]] = field(default_factory=dict)  # the same of single engines

    @property
    def home(self) -> Path:
        return self.registry.settings.home

    def engine(self, name: str, *versions: str, **settings: Any) -> FaultyEngine:
        """A live engine that serves these versions; its heartbeat goes on."""
        engine = FaultyEngine(name, **settings)
        engine.start()
        self.stack.callback(engine.stop)
        self.engines[name] = (engine, versions)
        self.beat()
        return engine

    def serves(self, name: str, *versions: str) -> None:
        """Change what an engine says it serves."""
        self.engines[name] = (self.engines[name][0], versions)
        self.beat()

    def beat(self) -> None:
        """One heartbeat of every engine."""
        for engine, versions in list(self.engines.values()):
            adapters = dict.fromkeys(versions, AdapterState.READY)
            base = self.base | self.bases.get(engine.id, {})
            beat_engine(self.registry, id=engine.id, url=engine.url, adapters=adapters, **base)

    def route(self, *arms: tuple[int, int], model: str = "bot", shadow: int | None = None) -> Route:
        """Write the next revision; `shadow` is the version that is sent a copy of everything."""
        history = self.registry.routes.history(model, limit=1)
        return self.registry.routes.write(
            model,
            [Arm(version=version, weight_bp=weight) for version, weight in arms],
            by="test",
            reason="test",
            expected_revision=history[0].revision if history else 0,
            shadow=None if shadow is None else (Shadow(version=shadow, share_bp=10_000),),
        )

    def gateway(self, **settings: Any) -> Address:
        """A gateway on a thread of this process; of engines with equal load it takes the first, and prefers none."""
        fields: dict[str, Any] = {"port": 0, "id": "gw", "record_text": "none", "poll_s": 0.1, "drain_s": 5.0}
        fields |= {"affinity_tokens": 0}
        gateway = GatewaySettings(**(fields | settings))
        listener = self.stack.enter_context(listening(gateway.host, gateway.port))
        port = listener.getsockname()[1]
        gateway = gateway.model_copy(update={"port": port})
        server = uvicorn.Server(config(gateway, self.registry.settings, draw=lambda: 0.0))
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the gateway does not end"

        self.stack.callback(stop)
        address = Address(f"http://127.0.0.1:{port}", self.key)
        wait_ready(address)
        return address

    @contextmanager
    def process(self, port: int, *, ready: bool = True, **variables: str) -> Iterator[GatewayProcess]:
        """`tuneloop gateway` as a process of its own."""
        process = GatewayProcess(self, port, variables)
        try:
            process.start(ready=ready)
            yield process
        finally:
            process.kill()


def wait_ready(address: Address, timeout_s: float = 120.0) -> None:
    """Until /readyz says yes."""

    def ready() -> bool:
        try:
            return address.call("/readyz").status == 200
        except OSError:
            return False

    until(ready, timeout_s, "the gateway is ready")


class GatewayProcess:
    """`tuneloop gateway`, started, killed and started again on one port."""

    def __init__(self, world: World, port: int, variables: dict[str, str]) -> None:
        self.address = Address(f"http://127.0.0.1:{port}", world.key)
        self._environment = {
            **os.environ,
            "TUNELOOP_HOME": str(world.home),
            "TUNELOOP_DATABASE_URL": world.registry.settings.database_url,
            "TUNELOOP_GATEWAY_ID": "gw",
            "TUNELOOP_GATEWAY_PORT": str(port),
            "TUNELOOP_GATEWAY_RECORD_TEXT": "none",
            **variables,
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self, *, ready: bool = True) -> subprocess.Popen[str]:
        """Start it."""
        self._process = subprocess.Popen(
            [TUNELOOP, "gateway"], env=self._environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if ready:
            wait_ready(self.address)
        return self._process

    def end(self, timeout_s: float = 20.0) -> tuple[int, str]:
        """SIGTERM; gives its exit code and what it wrote to stderr."""
        assert self._process is not None
        self._process.terminate()
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 20.0) -> tuple[int, str]:
        """Wait for its end."""
        assert self._process is not None
        _, errors = self._process.communicate(timeout=timeout_s)
        return self._process.returncode, errors

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def children(self) -> list[int]:
        """The processes it has started."""
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]

    def kill(self) -> str:
        """kill -9; gives what it wrote to stderr."""
        if self._process is None:
            return ""
        self._process.kill()
        _, errors = self._process.communicate()
        self._process = None
        return errors


def make_world(settings: RegistrySettings, stack: ExitStack) -> World:
    """An empty registry with one key, and the engines' heartbeats."""
    world = World(stack.enter_context(Registry.open(settings)), stack)
    world.key, _ = world.registry.keys.new("test", by="test")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1.0):
            world.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    stack.callback(thread.join, 10)
    stack.callback(ended.set)
    return world
