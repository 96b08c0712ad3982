"""What the registry costs as it grows: versions read, listed and promoted, routes read, and gateways that follow them.

    .venv/bin/python benchmarks/registry.py [--quick] [--json FILE]

On SQLite and on PostgreSQL (a cluster of its own), with 10, 1,000 and 100,000 versions and as many revisions of their
route, each operation of ours in turn with the call to MLflow's own client that comes nearest; ratios are medians of
such pairs. A version more than one is a row inserted by SQL into MLflow's schema, a copy of one that was published:
making a hundred thousand through MLflow takes days, since it reads all versions of a model to number the next.
Revisions are inserted likewise. `connect` is a registry's first word with MLflow. Then the gateway: looking up 1,000
models of 5 arms, and the time from the write of a route until each of 50 gateways, threads of this process with a
registry connection and a folder each, applies it. Takes about seven minutes; `--quick`, with 10 and 1,000 versions and
10 gateways, about one. Exits 1 where a promise is not kept: a change reaches a gateway after more than 2 s, or one in a
hundred lookups in a gateway's view takes more than 1 ms.

Not flat, for all we can do from outside: MLflow's client reads every version of a model before it moves an alias, which
`promote` waits for once gateways have the route; its search for a model's newest versions is planned by PostgreSQL as a
scan of all; its list of models looks for the newest version of each. A list of every version is as long as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from conftest import postgres_binaries
from postgres_cluster import PostgresCluster
from tests_support import beat_engine, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.access.keys import key_digest
from tuneloop.registry.database import row_of
from tuneloop.registry.nouns import AdapterState, ApiKey, Arm, EngineState, GatewayState, Route, utc_now
from tuneloop.registry.printing import table
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.tables import routes
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.look import follow, look
from tuneloop.serve.gateway.refresh import Refresh
from tuneloop.serve.gateway.routing import pick, plan
from tuneloop.serve.gateway.snapshot import Snapshot

SIZES, PAIRS, GATEWAYS, CHANGES = (10, 1_000, 100_000), 6, 50, 20
MODELS, ARMS, ENGINES, LOOKUPS = 1_000, 5, 8, 20_000
PAGE, CHUNK = 50, 5_000
POLL_S = 0.5  # a gateway's default
REACHED_WITHIN_S, LOOKUP_P99_US = 2.0, 1_000.0  # what is promised
BY_NUMBER = ["version_number DESC"]
MLFLOW_TABLES = ("model_versions", "model_version_tags")


@dataclass(frozen=True)
class Line:
    """One operation at one size on one database."""

    database: str
    versions: int
    operation: str
    ours_ms: float
    client: str
    client_ms: float | None
    ratio: float | None  # median over pairs


@contextmanager
def databases() -> Iterator[Mapping[str, Callable[[], str]]]:
    """Kind → makes the URL of a fresh database ("" is a file in the registry's home)."""
    binaries = postgres_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL is not installed; `make setup` installs it")
    cluster = PostgresCluster(binaries)
    try:
        yield {"sqlite": lambda: "", "postgresql": cluster.new_database}
    finally:
        cluster.stop()


@contextmanager
def grown(url: Callable[[], str], versions: int) -> Iterator[Registry]:
    """A registry in which `bot` has so many versions and revisions."""
    with tempfile.TemporaryDirectory(prefix="tuneloop-bench-") as home:
        settings = RegistrySettings(home=Path(home), database_url=url(), mlflow_uri=url())
        with Registry.open(settings) as registry:
            publish_version(registry, Path(home) / "v1")
            _copy_versions(settings.mlflow, versions)
            _write_revisions(registry, versions)
            registry.versions.mirror(registry.routes.current("bot"))
            for number in (1, 2):
                registry.gates.approve("bot", number, by="ada", reason="benchmark")
            yield registry


def _copy_versions(mlflow: str, versions: int) -> None:
    engine = sa.create_engine(mlflow)
    found = sa.MetaData()
    with engine.begin() as connection:
        for name in MLFLOW_TABLES:
            rows = sa.Table(name, found, autoload_with=connection, resolve_fks=False)
            first = [dict(row) for row in connection.execute(sa.select(rows)).mappings()]
            for start in range(2, versions + 1, CHUNK):
                numbers = range(start, min(start + CHUNK, versions + 1))
                connection.execute(sa.insert(rows), [{**row, "version": n} for row in first for n in numbers])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")  # what a server does by itself after a while
    engine.dispose()


def _write_revisions(registry: Registry, revisions: int) -> None:
    now = registry.clock()
    arms = (Arm(version=1, weight_bp=10_000),)
    for start in range(1, revisions + 1, CHUNK):
        numbers = range(start, min(start + CHUNK, revisions + 1))
        made = [Route(model="bot", revision=n, arms=arms, salt="s", by="ada", reason="r", at=now) for n in numbers]
        with registry.database.writing() as connection:
            connection.execute(sa.insert(routes), [row_of(route, routes) for route in made])
    with registry.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


def timed_ms(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def pairs_of(ours: Callable[[], object], theirs: Callable[[], object], times: int) -> tuple[float, float, float]:
    """Medians of both, and of the ratio of each pair; who goes first changes, and the first pairs warm up."""
    pairs = []
    for number in range(times + 2):
        if number % 2:
            theirs_ms, ours_ms = timed_ms(theirs), timed_ms(ours)
        else:
            ours_ms, theirs_ms = timed_ms(ours), timed_ms(theirs)
        pairs.append((ours_ms, theirs_ms))
    measured = pairs[2:]
    return median(a for a, _ in measured), median(b for _, b in measured), median(a / b for a, b in measured)


@dataclass(frozen=True)
class Size:
    """Every operation on one registry."""

    database: str
    registry: Registry
    versions: int
    pairs: int

    def lines(self) -> list[Line]:
        """Ours and the client's, in turn."""
        registry, client, middle = self.registry, self.registry.versions._client, self.versions // 2
        newest, alias, many = f"versions, newest {PAGE}", "get_model_version_by_alias", "search_registered_models"

        def champion() -> object:
            return client.get_model_version_by_alias("bot", "champion")

        def search(**order: list[str]) -> object:
            return client.search_model_versions("name = 'bot'", max_results=PAGE, **order)

        def connect() -> object:
            with Registry(registry.settings) as fresh:
                return fresh.versions._client

        return [
            self._line(
                "version get",
                lambda: registry.versions.get("bot", middle),
                "get_model_version",
                lambda: client.get_model_version("bot", str(middle)),
            ),
            self._line(
                newest,
                lambda: registry.versions.all("bot", newest=PAGE),
                "search_model_versions, by number",
                lambda: search(order_by=BY_NUMBER),
            ),
            self._line(
                newest,
                lambda: registry.versions.all("bot", newest=PAGE),
                "search_model_versions, its order",
                search,
            ),
            self._line("route current", lambda: registry.routes.current("bot"), alias, champion),
            self._line("routes current, all models", registry.routes.current_all, alias, champion),
            self._line("models", registry.versions.models, many, client.search_registered_models),
            self._line("connect", connect, many, lambda: client.search_registered_models(max_results=1)),
            self._alone("versions, every one", timed_ms(lambda: registry.versions.all("bot"))),
            *self._promotions(),
        ]

    def _promotions(self) -> list[Line]:
        """Two versions in turn: everything, and everything but MLflow's aliases, which follow when gateways know."""
        registry, numbers, others = self.registry, cycle((2, 1)), cycle("21")
        mirror, follow_ms, whole_ms = registry.versions.mirror, list[float](), list[float]()

        def ours() -> None:
            beat_engine(registry, "bot@1", "bot@2")
            whole_ms.append(timed_ms(lambda: promote(registry, "bot", next(numbers), Change("ada", "benchmark"))))

        def timed_mirror(route: Route) -> None:
            follow_ms.append(timed_ms(lambda: mirror(route)))

        def theirs() -> None:
            registry.versions._client.set_registered_model_alias("bot", "baseline", next(others))

        registry.versions.mirror = timed_mirror  # type: ignore[method-assign]
        line = self._line("promote", ours, "set_registered_model_alias", theirs)
        before = median(whole - follow for whole, follow in zip(whole_ms, follow_ms, strict=True))
        return [line, self._alone("promote, until gateways apply it", before)]

    def _line(self, operation: str, ours: Callable[[], object], call: str, theirs: Callable[[], object]) -> Line:
        ours_ms, theirs_ms, ratio = pairs_of(ours, theirs, self.pairs)
        return Line(self.database, self.versions, operation, ours_ms, call, theirs_ms, ratio)

    def _alone(self, operation: str, ours_ms: float) -> Line:
        return Line(self.database, self.versions, operation, ours_ms, "-", None, None)


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
    times_us = sorted(1e3 * timed_ms(lambda n=n: _route_one(view, key, n)) for n in range(LOOKUPS))  # type: ignore[misc]
    return {
        "models": MODELS,
        "arms": ARMS,
        "engines": ENGINES,
        "lookup_median_us": times_us[LOOKUPS // 2],
        "lookup_p99_us": times_us[LOOKUPS * 99 // 100],
        "lookup_p999_us": times_us[LOOKUPS * 999 // 1000],
        "read_registry_ms": look_ms,
        "make_view_ms": follow_ms,
        "make_lookups_ms": build_ms,
        "compare_views_ms": same_ms,
        "save_view_ms": save_ms,
    }


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


def measure_propagation(kind: str, url: Callable[[], str], gateways: int, changes: int) -> dict[str, float | str]:
    """From the write of a revision until every gateway applies it, change after change."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    applied: dict[int, dict[str, float]] = {}
    lock = threading.Lock()

    def gateway(name: str, folder: Path, link: Link) -> Refresh:
        def hears(view: Snapshot) -> None:
            at, revision = time.perf_counter(), view.applied.get("bot", 0)
            with lock:
                applied.setdefault(revision, {}).setdefault(name, at)

        def beat(view: Snapshot) -> GatewayState:
            return GatewayState(
                id=name, url="http://x", applied=view.applied, in_flight={}, dropped_records=0, at=utc_now()
            )

        folder.mkdir()
        return Refresh(link, folder, POLL_S, beat, hears, lambda _part: None)

    slowest: list[float] = []
    each: list[float] = []
    confirmed: list[float] = []
    with tempfile.TemporaryDirectory(prefix="tuneloop-bench-") as home:
        settings = RegistrySettings(home=Path(home), database_url=url())
        with Registry.open(settings) as registry:
            arms = [Arm(version=1, weight_bp=10_000)]
            registry.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
            links = [Link(settings) for _ in range(gateways)]
            running = [gateway(f"g{n}", Path(home) / f"g{n}", link) for n, link in enumerate(links)]
            for one in running:
                one.start(loop)
                time.sleep(POLL_S / gateways)  # gateways do not start at one moment
            while len(applied.get(1, {})) < gateways or len(registry.fleet.gateways()) < gateways:
                time.sleep(0.1)
            for revision in range(2, changes + 2):
                time.sleep(0.1 + 0.37 * (revision % 3))
                registry.routes.write("bot", arms, by="ada", reason="r", expected_revision=revision - 1)
                wrote = time.perf_counter()
                registry.fleet.wait_applied("bot", revision, 30.0)
                confirmed.append(time.perf_counter() - wrote)
                arrived = [at - wrote for at in applied[revision].values()]
                each += arrived
                slowest.append(max(arrived))
            for one in running:
                one._stopping.set()
            for one in running:
                one.stop()
            for link in links:
                link.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return {
        "database": kind,
        "gateways": gateways,
        "changes": changes,
        "one_gateway_median_s": median(each),
        "all_gateways_median_s": median(slowest),
        "all_gateways_max_s": max(slowest),
        "writer_knows_median_s": median(confirmed),
        "writer_knows_max_s": max(confirmed),
    }


def machine() -> dict[str, object]:
    """What this ran on, and how busy that was with other work."""
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "note": "absolute times are those of a shared machine; ratios are of pairs in one run",
    }


def show(lines: Sequence[Line], lookups: Mapping[str, float], reached: Sequence[Mapping[str, float | str]]) -> str:
    """Three tables."""
    rows = [
        [
            line.database,
            line.operation,
            f"{line.versions:,}",
            f"{line.ours_ms:.2f}",
            line.client,
            None if line.client_ms is None else f"{line.client_ms:.2f}",
            None if line.ratio is None else f"{line.ratio:.2f}",
        ]
        for line in sorted(lines, key=lambda line: (line.database, line.operation, line.client, line.versions))
    ]
    parts = [table(["DATABASE", "OPERATION", "VERSIONS", "OURS, MS", "MLFLOW'S CLIENT", "MS", "OURS / CLIENT"], rows)]
    parts.append(table(["GATEWAY", ""], [[name, f"{value:.4g}"] for name, value in lookups.items()]))
    headers = list(reached[0])
    parts.append(
        table(
            headers,
            [[f"{value:.3g}" if isinstance(value, float) else value for value in one.values()] for one in reached],
        )
    )
    return "\n\n".join(parts)


def broken_promises(lookups: Mapping[str, float], reached: Sequence[Mapping[str, float | str]]) -> list[str]:
    """What was promised and is not so here."""
    found = [
        f"{one['database']}: a change reached the last gateway after {float(one['all_gateways_max_s']):.2f} s, "
        f"{REACHED_WITHIN_S:g} s are promised"
        for one in reached
        if float(one["all_gateways_max_s"]) > REACHED_WITHIN_S
    ]
    if (p99_us := lookups["lookup_p99_us"]) > LOOKUP_P99_US:
        found.append(f"one in a hundred lookups takes more than {p99_us:.0f} µs, {LOOKUP_P99_US:g} µs are promised")
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # what MLflow and gateways say of themselves
    before = machine()
    sizes, pairs = (SIZES[:2], 5) if options.quick else (SIZES, PAIRS)
    gateways, changes = (10, 5) if options.quick else (GATEWAYS, CHANGES)
    lines: list[Line] = []
    reached = []
    with databases() as kinds:
        for kind, url in kinds.items():
            for versions in sizes:
                with grown(url, versions) as registry:
                    lines += Size(kind, registry, versions, pairs).lines()
        for kind, url in kinds.items():
            reached.append(measure_propagation(kind, url, gateways, changes))
    lookups = measure_lookups()
    print(show(lines, lookups, reached))
    if options.json:
        found = {
            "machine": before | {"load_average_after": os.getloadavg()},
            "sizes": [asdict(line) for line in lines],
            "lookups": lookups,
            "propagation": reached,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if broken := broken_promises(lookups, reached):
        raise SystemExit("\n".join(broken))


if __name__ == "__main__":
    main()
