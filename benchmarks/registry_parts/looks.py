"""How many models one look at MLflow's aliases manages, and so up to how many a foreign move is noticed within 10 s."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx

from registry_parts.grown import populous
from registry_parts.operations import timed_ms
from tests_support import free_port
from tuneloop.registry import Registry
from tuneloop.registry.aliases import watch as alias_watch
from tuneloop.registry.aliases.watch import AliasWatch

TIMES = 5


@dataclass(frozen=True)
class Look:
    """One look at every model, none of whose aliases was moved."""

    mlflow: str
    models: int
    whole_ms: float  # aliases, routes, what was accounted, and comparing them
    mlflow_ms: float  # the aliases alone, which have the time that a look gives MLflow


def look_at(kind: str, registry: Registry, models: int) -> Look:
    """Time a look, and in it what MLflow takes."""
    alias_watch.ASK_TIMEOUT_S = 600.0  # no look is cut short here: how long it takes is what is asked
    watch, routes = AliasWatch(registry), list(registry.routes.current_all().values())
    watch.turn()
    whole_ms = median(timed_ms(watch.turn) for _ in range(TIMES))
    found: dict[str, object] = {}

    def see() -> None:
        found.clear()
        watch._see(routes, found)  # type: ignore[arg-type]

    mlflow_ms = median(timed_ms(see) for _ in range(TIMES))
    return Look(kind, models, whole_ms, mlflow_ms)


def measure_looks(kind: str, url: Callable[[], str], sizes: tuple[int, ...]) -> list[Look]:
    """MLflow as a database, and, where that is PostgreSQL, behind a tracking server too."""
    looks = []
    for models in sizes:
        with populous(url, models) as registry:
            looks.append(look_at(kind, registry, models))
            if registry.settings.mlflow.startswith("postgresql"):
                with served(registry.settings.mlflow) as address:
                    behind = registry.settings.model_copy(update={"mlflow_uri": address})
                    with Registry(behind) as asked:
                        looks.append(look_at(f"server on {kind}", asked, models))
    return looks


@contextmanager
def served(store: str) -> Iterator[str]:
    """A tracking server of one worker in front of an MLflow."""
    port = free_port()
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", store]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.environ["NO_PROXY"] = "127.0.0.1"
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "mlflow"), *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            while not _healthy(url):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("the MLflow server does not start")
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # its worker too, which it would leave


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.HTTPError:
        return False
