"""Tests share databases on PostgreSQL: one that comes back is as new, or is not lent again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings


def rows(url: str) -> dict[str, list[Any]]:
    """Everything in it, by table, and what its sequences gave out."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        found = {name: list(connection.execute(sa.text(f"SELECT * FROM {name}"))) for name in tables}  # noqa: S608
        found["sequences"] = sorted(connection.execute(sa.text("SELECT sequencename, last_value FROM pg_sequences")))
    engine.dispose()
    return found


def test_what_was_written_is_gone_and_numbers_begin_anew(
    postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postgres_cluster._LEAVE_S", 60)  # a busy server sees late that its clients have gone
    new = rows(postgres.migrated_database())
    with postgres.lent_database() as url, Registry.open(RegistrySettings(home=tmp_path, database_url=url)) as registry:
        registry.keys.new("ada", by="ada")
        assert registry.audit.entries() != []
        assert rows(url) != new
    with postgres.lent_database() as again:
        assert again == url
        assert rows(again) == new


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE api_keys ADD COLUMN more INTEGER",
        "CREATE TABLE more (id INTEGER)",
        "DROP TRIGGER audit_no_change ON audit",
        "ALTER TABLE audit DISABLE TRIGGER audit_in_order",
        "CREATE INDEX more ON audit (subject)",
    ],
)
def test_one_whose_schema_is_another_is_not_lent_again(postgres: Any, change: str) -> None:
    with postgres.lent_database() as url:
        name = url.rpartition("/")[2]
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(change)
    with postgres.lent_database() as other:
        assert other.rpartition("/")[2] != name


def test_one_that_somebody_still_holds_is_taken_from_them_and_not_lent_again(postgres: Any) -> None:
    with postgres.lent_database() as url:
        held = psycopg.connect(url.replace("+psycopg", ""))
    with postgres.lent_database() as other:
        assert other != url
    with held, pytest.raises(psycopg.OperationalError):
        held.execute("SELECT 1")
