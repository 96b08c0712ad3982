"""Registries as they are after years: many versions, many revisions, many models.

A version more than one is a row inserted by SQL into MLflow's schema, a copy of one that was published; revisions and
models likewise. Each database has its statistics afterwards, which a server gathers by itself after a while.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from conftest import postgres_binaries
from postgres_cluster import PostgresCluster
from tests_support import publish_version
from tuneloop.registry import Registry
from tuneloop.registry.audit import chained
from tuneloop.registry.database import row_of
from tuneloop.registry.nouns import Arm, Route
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.tables import aliases, audit, audit_head, routes

CHUNK = 5_000
MLFLOW_TABLES = ("model_versions", "model_version_tags")
Row = dict[str, Any]


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
    with _fresh(url) as registry:
        mlflow = registry.settings.mlflow
        for name in MLFLOW_TABLES:
            [first] = read(mlflow, name)
            insert(mlflow, name, [first | {"version": number} for number in range(2, versions + 1)])
        now, arms = registry.clock(), (Arm(version=1, weight_bp=10_000),)
        numbers = range(1, versions + 1)
        made = [Route(model="bot", revision=n, arms=arms, salt="s", by="ada", reason="r", at=now) for n in numbers]
        _write(registry, routes, [row_of(route, routes) for route in made])
        _record(registry, made)
        registry.versions.mirror(registry.routes.current("bot"))
        for number in (1, 2):
            registry.gates.approve("bot", number, by="ada", reason="benchmark")
        yield registry


@contextmanager
def populous(url: Callable[[], str], models: int) -> Iterator[Registry]:
    """A registry with so many models of ten versions each, served by their first, as MLflow's aliases say."""
    with _fresh(url) as registry:
        mlflow, now = registry.settings.mlflow, registry.clock()
        names = [f"m{number:05}" for number in range(models)]
        for name in ("registered_models", "registered_model_tags"):
            [first] = read(mlflow, name)
            insert(mlflow, name, [first | {"name": model} for model in names])
        for name in MLFLOW_TABLES:
            [first] = read(mlflow, name)
            insert(mlflow, name, [first | {"name": m, "version": n} for m in names for n in range(1, 11)])
        alias = {"workspace": first["workspace"], "alias": "champion", "version": 1}
        insert(mlflow, "registered_model_aliases", [alias | {"name": model} for model in names])
        arms = (Arm(version=1, weight_bp=10_000),)
        made = [Route(model=m, revision=1, arms=arms, salt="s", by="ada", reason="r", at=now) for m in names]
        _write(registry, routes, [row_of(route, routes) for route in made])
        seen = {"champion": 1, "challenger": None, "revision": 1, "pending": "", "token": 1, "at": now}
        _write(registry, aliases, [seen | {"model": model} for model in names])  # they have been looked at before
        yield registry


@contextmanager
def _fresh(url: Callable[[], str]) -> Iterator[Registry]:
    with tempfile.TemporaryDirectory(prefix="tuneloop-bench-") as home:
        settings = RegistrySettings(home=Path(home), database_url=url(), mlflow_uri=url())
        with Registry.open(settings) as registry:
            publish_version(registry, Path(home) / "v1")
            yield registry


def read(url: str, name: str) -> list[Row]:
    """Every row of a table."""
    engine = sa.create_engine(url)
    table = sa.Table(name, sa.MetaData(), autoload_with=engine, resolve_fks=False)
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(sa.select(table)).mappings()]
    engine.dispose()
    return found


def insert(url: str, name: str, rows: Sequence[Row]) -> None:
    """Put rows into one of MLflow's tables."""
    engine = sa.create_engine(url)
    table = sa.Table(name, sa.MetaData(), autoload_with=engine, resolve_fks=False)
    with engine.begin() as connection:
        _insert(connection, table, rows)
    _analyse(engine)
    engine.dispose()


def _write(registry: Registry, table: sa.Table, rows: Sequence[Row]) -> None:
    with registry.database.writing() as connection:
        _insert(connection, table, rows)
    _analyse(registry.database.engine)


def _record(registry: Registry, revisions: Sequence[Route]) -> None:
    """The audit log as it is after these revisions were written."""
    with registry.database.reading() as connection:
        head = connection.execute(sa.select(audit_head)).mappings().one()
    rows: list[Row] = []
    number, last = head["id"], head["hash"]
    for route in revisions:
        number += 1
        row = {"id": number, "at": route.at, "actor": route.by, "action": "route.set", "subject": route.model}
        row["detail"] = {"revision": route.revision, "split": route.split_text, "reason": route.reason}
        last = row["hash"] = chained(last, row)
        rows.append(row)
    _write(registry, audit, rows)
    with registry.database.writing() as connection:
        connection.execute(sa.update(audit_head).values(id=number, hash=last))


def _insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), CHUNK):
        connection.execute(sa.insert(table), rows[start : start + CHUNK])


def _analyse(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
