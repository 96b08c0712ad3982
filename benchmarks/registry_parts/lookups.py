"""A gateway's view of many models: what a request pays in it, and what each reading of the registry pays beside it."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import sqlalchemy as sa

from registry_parts.operations import timed_ms
from tuneloop.registry import Registry
from tuneloop.registry.access.keys import key_digest
from tuneloop.registry.database import row_of
from tuneloop.registry.nouns import AdapterState, ApiKey, Arm, EngineState, Route, utc_now
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.tables import routes
from tuneloop.serve.gateway.look import follow, look
from tuneloop.serve.gateway.routing import pick, plan
from tuneloop.serve.gateway.snapshot import Snapshot

MODELS, ARMS, ENGINES, LOOKUPS = 1_000, 5, 8, 20_000


def measure_lookups() -> dict[str, float]:
    """A gateway's view of many models: what a request pays, and what each reading of the registry pays beside them."""
    now = utc_now()
    key = ApiKey(id="key_1", digest=key_digest("k"), owner="me", models=(), may_pin=True, created_at=now)
    with tempfile.TemporaryDirectory(prefix="tuneloop-bench-") as home:
        with Registry.open(RegistrySettings(home=Path(home))) as registry:
            made = _many_routes()
            with registry.database.writing() as connection:
                connection.execute(sa.insert(routes), [row_of(route, routes) for route in made])
            for number in range(ENGINES):
                registry.fleet.beat_engine(_engine(number))
            registry.keys.new("team", by="ada")
            look_ms = median(timed_ms(lambda: look(registry, utc_now())) for _ in range(5))
            seen = look(registry, utc_now())
        follow_ms = median(timed_ms(lambda: follow(None, seen, spare_engines=False)) for _ in range(5))
        views = [view for _ in range(6) if (view := follow(None, seen, spare_engines=False).view) is not None]
        build_ms = median(timed_ms(view.build) for view in views[1:])
        view = views[0]
        view.build()
        same_ms = median(timed_ms(lambda: view.same_as(views[1])) for _ in range(5))
        save_ms = median(timed_ms(lambda: view.save(Path(home))) for _ in range(5))
    times_us = _lookups(view, key)
    with without_collection():
        quiet_us = _lookups(view, key)
    return {
        "models": MODELS,
        "arms": ARMS,
        "engines": ENGINES,
        "lookup_median_us": times_us.wall[LOOKUPS // 2],
        "lookup_p99_us": times_us.wall[LOOKUPS * 99 // 100],
        "lookup_p999_us": times_us.wall[LOOKUPS * 999 // 1000],
        "lookup_p999_us_of_processor": times_us.processor[LOOKUPS * 999 // 1000],
        "lookup_slowest_us_of_processor": times_us.processor[-1],
        "without_gc_p999_us": quiet_us.wall[LOOKUPS * 999 // 1000],
        "without_gc_p999_us_of_processor": quiet_us.processor[LOOKUPS * 999 // 1000],
        "without_gc_slowest_us_of_processor": quiet_us.processor[-1],
        "read_registry_ms": look_ms,
        "make_view_ms": follow_ms,
        "make_lookups_ms": build_ms,
        "compare_views_ms": same_ms,
        "save_view_ms": save_ms,
    }


@dataclass(frozen=True)
class Times:
    """Of every lookup, the quickest first: on the clock, and on the processor, where other work does not count."""

    wall: list[float]
    processor: list[float]


def _lookups(view: Snapshot, key: ApiKey) -> Times:
    wall, processor = [], []
    for number in range(LOOKUPS):
        began, began_ns = time.perf_counter(), time.thread_time_ns()
        _route_one(view, key, number)
        processor.append((time.thread_time_ns() - began_ns) / 1e3)
        wall.append(1e6 * (time.perf_counter() - began))
    return Times(sorted(wall), sorted(processor))


@contextmanager
def without_collection() -> Iterator[None]:
    """Without Python's garbage collector, to tell its part."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _route_one(view: Snapshot, key: ApiKey, number: int) -> None:
    model = f"m{number % MODELS}"
    found = plan(view, model, key, f"user-{number}")
    if pick(view, model, found.versions, lambda _: 0) is None:
        raise SystemExit(f"no engine for {model}")


def _many_routes() -> list[Route]:
    now = utc_now()
    arms = tuple(Arm(version=n, weight_bp=10_000 // ARMS) for n in range(1, ARMS + 1))
    return [
        Route(model=f"m{n}", revision=1, arms=arms, salt=f"s{n}", by="ada", reason="r", at=now) for n in range(MODELS)
    ]


def _engine(number: int) -> EngineState:
    names = [f"m{n}@{v}" for n in range(MODELS) if n % ENGINES == number for v in range(1, ARMS + 1)]
    return EngineState(
        id=f"e{number}",
        url=f"http://127.0.0.1:{9000 + number}",
        base="base",
        base_digest="sha256:base",
        template_digest="sha256:template",
        state="ready",
        adapters=dict.fromkeys(names, AdapterState.READY),
        max_loras=len(names),
        max_lora_rank=16,
        at=utc_now(),
    )
