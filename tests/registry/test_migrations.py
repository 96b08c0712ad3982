"""Migrations with data in them, on both databases: what stays going down and up, what cannot, what an older tuneloop
wrote.

Out of it are the rows that a migration refuses to leave behind; `test_database.py` has those.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from registry.everything import MODEL, let_everything_happen, read_everything
from tests_support import Clock
from tuneloop.registry import Registry, audit
from tuneloop.registry import database as migrations_home
from tuneloop.registry.database import Database, noun_of
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.routes.arranging import arrange
from tuneloop.registry.tables import metadata, routes

Row = dict[str, Any]
# What going down from a schema loses: what its migration brought, which the schema before has no place for.
LOST = {
    "0019": {"api_keys.scopes"},
    "0018": {"retraining.judged_until"},
    "0017": set(),
    "0016": {"requests.client_id", "forgotten_requests", "engines.pins"},
    "0015": {"silences.cause", "silences.signals"},
    "0014": {"experiments.looked_at"},
    "0013": {"owner_limits"},
    "0012": {"routes.shadow", "shadow_requests"},
    "0011": {"api_keys.limits", "api_keys.old_digest", "api_keys.old_until", "key_usage", "limit_leases"},
    "0010": {"deliveries", "silences"},
    "0009": set(),
    "0008": {
        "approvals.trained_by",
        "retraining.held",
        "retraining.held_until",
        "retraining.budget_waived_by",
        "retraining_runs",
    },
    "0007": {"routes.holdout_bp", "rollouts", "aliases"},
    "0006": {"tokens", "approvals.role"},
    "0005": {"experiments"},
    "0004": {"routes.overrides"},
    "0003": {"approvals.id", "approvals.granted", "approvals.expires_at"},  # and the rows that `kept_below` leaves out
    "0002": {"audit.hash", "audit_head"},  # which going up makes again
}
LOST_TABLES = {name for names in LOST.values() for name in names if "." not in name}
# What stands in a column that comes (again) for the rows that are there.
BEGUN = {
    "routes.overrides": {},
    "routes.holdout_bp": 0,
    "retraining.held": "",
    "api_keys.limits": {},
    "api_keys.scopes": [],
    "approvals.granted": True,
    "engines.pins": [],
}
_NUMBERED = ("gate_reports", "policies", "approvals")  # rows that the database numbers
_NAMES = (
    *("id", "digest", "old_digest", "idempotency_key", "request_id", "episode_id", "shadow_of", "api_key"),
    *("holder", "name", "client_id"),
)


class Schemas:
    """A database that goes up and down, step by step."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._config = Config()
        self._config.set_main_option("script_location", str(Path(migrations_home.__file__).parent / "migrations"))
        script = ScriptDirectory.from_config(self._config)
        self.revisions = [one.revision for one in script.walk_revisions()][::-1]

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Each revision after the first, behind the one before it."""
        return list(zip(self.revisions, self.revisions[1:], strict=False))

    def down(self, revision: str) -> None:
        with self.database.writing() as connection:
            self._config.attributes["connection"] = connection
            command.downgrade(self._config, revision)

    def up(self, revision: str) -> None:
        with self.database.writing() as connection:
            self._config.attributes["connection"] = connection
            command.upgrade(self._config, revision)

    def rows(self) -> dict[str, list[Row]]:
        """Every row of every table there is."""
        with self.database.reading() as connection:
            return {
                name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
                for name, table in _tables(connection).items()
            }

    def add(self, written: dict[str, list[Row]], mark: str) -> dict[str, list[Row]]:
        """Rows of these tables with names of their own, as far as there is a place for them; the audit log's only at
        the first schema, which does not chain it yet."""
        with self.database.writing() as connection:
            tables, added = _tables(connection), {}
            for name in tables.keys() - {"audit_head"} - ({"audit"} if "audit_head" in tables else set()):
                rows = [_marked(name, row, mark, tables[name].c.keys()) for row in written[name]]
                if name == "approvals" and "granted" not in tables[name].c:  # one of each version
                    rows = list({row["version"]: row for row in rows}.values())
                connection.execute(sa.insert(tables[name]), rows)
                added[name] = rows
        return added

    def shape(self) -> dict[str, Any]:
        """Every column, key, constraint and index, whatever their order."""
        with self.database.reading() as connection:
            found = sa.inspect(connection)
            shapes = {
                "columns": _each(
                    found.get_multi_columns(), lambda c: (c["name"], type(c["type"]).__name__, c["nullable"])
                ),
                "unique": _each(found.get_multi_unique_constraints(), lambda u: u["column_names"]),
                "indexes": _each(
                    found.get_multi_indexes(), lambda i: (i["name"], i["column_names"], i["unique"], str(_where(i)))
                ),
                "keys": {
                    table: key["constrained_columns"] for (_, table), key in found.get_multi_pk_constraint().items()
                },
            }
        assert shapes["columns"].keys() == shapes["indexes"].keys() == shapes["keys"].keys()
        return shapes


def _each(found: Mapping[Any, Iterable[Any]], said: Callable[[Any], Any]) -> dict[str, list[Any]]:
    return {table: sorted(map(said, items)) for (_, table), items in found.items()}


def _where(index: Any) -> Any:
    options = index.get("dialect_options", {})
    return options.get("sqlite_where", options.get("postgresql_where"))


def _tables(connection: sa.Connection) -> dict[str, sa.TableClause]:
    found = sa.inspect(connection)
    return {
        name: sa.table(name, *(sa.column(c["name"], metadata.tables[name].c[c["name"]].type) for c in each))
        for (_, name), each in found.get_multi_columns().items()
        if name != "alembic_version"
    }


def _marked(table: str, row: Row, mark: str, known: Collection[str]) -> Row:
    kept = {name: row[name] for name in known if not (name == "id" and table in _NUMBERED)}
    if table == "audit":
        return kept
    named = {name for name in kept if name in _NAMES or (name == "model" and kept[name] == MODEL)}
    return {name: f"{mark}{value}"[:64] if name in named and value else value for name, value in kept.items()}


def begun(table: str, row: Row) -> Row:
    """A row of an older schema with what stands in the columns that came later."""
    names = metadata.tables[table].c.keys()
    return {name: row.get(name, BEGUN.get(f"{table}.{name}")) for name in names if name != "id" or "id" in row}


def tables_of(revision: str) -> set[str]:
    """The tables of a schema that rows can be added to."""
    later = {name for one, names in LOST.items() if one > revision for name in names if "." not in name}
    return metadata.tables.keys() - later - {"audit_head"} - ({"audit"} if revision != "0001" else set())


def ordered(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    return {table: alike(found) for table, found in rows.items()}


def alike(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: repr(sorted(row.items())))


def columns(rows: dict[str, list[Row]], tables: Collection[str]) -> set[str]:
    return {f"{table}.{column}" for table in tables for column in rows[table][0]}


def kept_below(revision: str, above: dict[str, list[Row]], lost: set[str]) -> dict[str, list[Row]]:
    """What of these rows the schema before has a place for."""
    kept = {
        table: [{name: value for name, value in row.items() if f"{table}.{name}" not in lost} for row in rows]
        for table, rows in above.items()
        if table not in lost
    }
    if revision == "0003":  # which knows one approval of a version, without an end
        newest = {row["version"]: row for row in sorted(above["approvals"], key=lambda row: row["id"])}
        forever = {row["version"]: row for row in newest.values() if row["granted"] and row["expires_at"] is None}
        kept["approvals"] = [{name: row[name] for name in kept["approvals"][0]} for row in forever.values()]
    return kept


def taken_over(below: dict[str, list[Row]], written: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """What going up from the first schema makes of its rows: the log is chained as it was, all else begins anew."""
    made = {
        table: [
            {name: row.get(name, BEGUN.get(f"{table}.{name}")) for name in found[0]} for row in below.get(table, ())
        ]
        for table, found in written.items()
    }
    return without_numbers(made | {table: written[table] for table in ("audit", "audit_head")})


def without_numbers(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Approvals are numbered anew going up."""
    unnumbered = [{name: row[name] for name in row if name != "id"} for row in rows["approvals"]]
    return {table: alike(found) for table, found in (rows | {"approvals": unnumbered}).items()}


def test_a_step_down_loses_what_its_migration_brought_and_nothing_else_and_a_step_up_nothing(
    registries: Registry, clock: Clock
) -> None:
    let_everything_happen(registries, clock)
    schemas = Schemas(registries.database)
    written = above = schemas.rows()
    assert {table for table, found in written.items() if found} == metadata.tables.keys()
    shapes = {schemas.revisions[-1]: schemas.shape()}
    for before, revision in reversed(schemas.steps):
        schemas.database.downgrade(before)
        below, shapes[before] = schemas.rows(), schemas.shape()
        gone = above.keys() - below.keys()
        assert gone | (columns(above, below.keys()) - columns(below, below.keys())) == LOST[revision]
        assert ordered(below) == ordered(kept_below(revision, above, LOST[revision]))
        above = below
    for wrong in ("base", "9999"):
        with pytest.raises(InvalidInput):
            schemas.database.downgrade(wrong)
    for _, revision in schemas.steps:
        schemas.up(revision)
        assert schemas.shape() == shapes[revision]
    assert without_numbers(schemas.rows()) == taken_over(below, written)
    read = read_everything(registries)
    assert {table for table, found in read.items() if found} == read.keys() - {*LOST_TABLES}
    verified = registries.audit.verify()
    assert (verified.faults, verified.entries) == ((), len(written["audit"]))
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), registries.database.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM audit"))


def test_going_back_to_where_arms_named_no_places_leaves_routes_that_can_be_read_there(
    registries: Registry, clock: Clock
) -> None:
    route = None
    for split in ({1: 10_000}, {3: 1_000, 2: 1_000, 1: 8_000}, {3: 2_000, 2: 1_000, 1: 7_000}):
        number, arms = (route.revision if route else 0), arrange(route, split)
        route = registries.routes.write("bot", arms, by="a", reason="r", expected_revision=number)
    assert route is not None
    assert any(arm.places for arm in route.arms)
    Schemas(registries.database).down("0014")
    with registries.database.reading() as connection:
        kept = sa.table("routes", sa.column("revision"), sa.column("arms", routes.c.arms.type)).c
        rows = connection.execute(sa.select(kept.arms).order_by(kept.revision)).scalars().all()
    assert {name for arms in rows for arm in arms for name in arm} == {"version", "weight_bp"}
    assert rows[-1] == [arm.model_dump(include={"version", "weight_bp"}) for arm in route.arms]


def test_what_every_older_tuneloop_wrote_is_read_by_this_one(registries: Registry, clock: Clock) -> None:
    """From an empty database up, rows of every table are added at every schema, as it then was."""
    let_everything_happen(registries, clock)
    schemas, database = Schemas(registries.database), registries.database
    written, nouns = schemas.rows(), read_everything(registries)
    schemas.down("base")
    assert schemas.rows() == {}
    expected: dict[str, dict[str, list[Row]]] = {}
    for revision in schemas.revisions:
        schemas.up(revision)
        expected[revision] = schemas.add(written, f"{revision}-")
        if revision != "0001":
            with database.writing() as connection:
                audit.record(connection, at=clock(), actor="ada", action="test", subject=revision, detail={})
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    now = schemas.rows()
    for revision, added in expected.items():
        assert {table for table, rows in added.items() if rows} == tables_of(revision)
        read = read_everything(registries, f"{revision}-")
        for table, found in read.items():
            kind = type(nouns[table][0])
            meant = [begun(table, row) for row in added.get(table, ())]
            assert sorted(found, key=repr) == sorted((noun_of(kind, row) for row in meant), key=repr)
        for table in ("aliases", "limit_leases", "forgotten_requests"):  # of which there is no noun
            assert all(row in now[table] for row in added.get(table, ()))
        assert registries.policies.get(f"{revision}-{MODEL}", RetrainingPolicy).device_hours_per_day == 0.5
    assert registries.audit.verify().faults == ()
    assert len(now["audit"]) == len(written["audit"]) + len(schemas.steps)
