"""A control plane that really listens, with a token of each role, and a fleet that follows every route at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from registry.experiment_traffic import NO_PLAN
from tests_support import beat_engine, beat_gateway
from tuneloop.registry import Registry
from tuneloop.registry.access.roles import Role
from tuneloop.registry.api.problems import STATUS
from tuneloop.registry.api.server import config, listening
from tuneloop.registry.experiments.declaration import Declaration
from tuneloop.registry.nouns import version_name
from tuneloop.registry.rollouts.rollout import RolloutState
from tuneloop.registry.settings import ApiSettings

DECLARED = {
    "model": "bot",
    "hypothesis": "Version 2 gets fewer thumbs-down",
    "arms": {"1": 9_000, "2": 1_000},
    "control": 1,
    "primary": {"kind": "binary", "measure": "thumbs_down", "goal": "lower", "minimum_effect": 0.1},
}
GENEROUS = ApiSettings(rate_per_s=100_000, burst=100_000, failures_per_minute=100_000, drain_s=2)


@dataclass
class Plane:
    """Where it listens, what is behind it, and the secrets of its tokens."""

    registry: Registry
    url: str
    client: httpx.Client
    secrets: dict[Role, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, role: Role | None = Role.ADMIN, **said: Any) -> httpx.Response:
        """One request by the token of a role; None: without one."""
        headers = {} if role is None else {"authorization": f"Bearer {self.secrets[role]}"}
        return self.client.request(method, path, headers=headers | said.pop("headers", {}), **said)

    def get(self, path: str, role: Role | None = Role.ADMIN, **said: Any) -> Any:
        """What a GET answers with 200."""
        answer = self.ask("GET", path, role, **said)
        assert answer.status_code == 200, answer.text
        return answer.json()


def is_problem(answer: httpx.Response, kind: str) -> bool:
    """Whether an answer is a problem of this kind, as every problem is told."""
    said = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert said.keys() == {"type", "title", "status", "detail"}
    assert said["status"] == answer.status_code == STATUS[kind][0]  # type: ignore[index]
    return bool(said["type"] == f"urn:tuneloop:problem:{kind}")


@contextmanager
def running(registry: Registry, settings: ApiSettings = GENEROUS) -> Iterator[Plane]:
    """A control plane on a free port, until the block ends."""
    with listening(settings.host, 0) as listener:
        server = uvicorn.Server(config(settings, registry))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=30) as client:
                plane = Plane(registry, url, client)
                for role in Role:
                    plane.secrets[role], _ = registry.tokens.new(f"the-{role}", role, by="test", reason="test")
                while client.get("/healthz").status_code != 200:
                    time.sleep(0.01)
                yield plane
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


def let_experiment(registry: Registry) -> None:
    """An experiment of `bot` that is over, for which its rollout was paused, and one that has not started."""
    declared, [rollout] = Declaration.model_validate(DECLARED), registry.rollouts.all("bot")
    with registry.database.writing() as connection:
        paused = registry.rollouts.end(connection, rollout, RolloutState.PAUSED, "an experiment")
    over, _draft = (registry.experiments.new(declared, NO_PLAN, by="ada", reason="r") for _ in range(2))
    registry.experiments.start(over.id, revision=2, by="ada", reason="r")
    registry.experiments.stop(over.id, by="ada", reason="r")
    registry.rollouts.resume(paused, rollout.model_copy(update={"taken": ()}), by="ada", reason="r")


def let_silence(registry: Registry) -> None:
    """Somebody on call wants no more of one signal today."""
    registry.silences.add("bot", 86_400, by="ada", reason="r", signal="latency")


@contextmanager
def following(registry: Registry) -> Iterator[None]:
    """An engine that serves what the routes name and a gateway that applies them, for as long as the block runs."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.is_set():
            routes = registry.routes.current_all()
            names = [version_name(model, arm.version) for model, route in routes.items() for arm in route.arms]
            beat_engine(registry, *names, max_loras=20)
            beat_gateway(registry, {model: route.revision for model, route in routes.items()})
            ended.wait(0.05)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
