"""However many versions a model has, what is asked of MLflow is short: on its SQLite and on its PostgreSQL.

How short in milliseconds says `benchmarks/registry.py`. Here a model is never read whole, pages hold what they should
whatever was deleted between them, and a version's place in a page is found without counting.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag
from mlflow.tracking import MlflowClient

from registry.world import CHANGE
from tests_support import Clock, publish_version
from tuneloop.registry import Registry, overview
from tuneloop.registry.aliases.accounting import Aliases
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Arm
from tuneloop.registry.paging import Ask
from tuneloop.registry.routes.promotion import promote
from tuneloop.registry.settings import RegistrySettings

MANY = 60


@pytest.fixture(params=["sqlite", "postgresql"])
def grown(
    request: pytest.FixtureRequest, registry_home: Path, published_mlflow: Path, clock: Clock
) -> Iterator[Registry]:
    """`bot` has many versions; MLflow is in a file, or in a PostgreSQL."""
    shutil.copy(published_mlflow, registry_home)
    settings = RegistrySettings(home=registry_home)
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database()
        _copy_mlflow(settings.mlflow, url)
        settings = settings.model_copy(update={"mlflow_uri": url})
    with Registry.open(settings, clock=clock) as registry:
        _copy_version(registry, MANY)
        yield registry
        client = registry.versions._client
        for store in (client._get_registry_client().store, client._tracking_client.store):
            store.engine.dispose()


def _copy_mlflow(there: str, here: str) -> None:
    """As it is in the file: MLflow's own migrations take seconds for the same tables."""
    source, target, found = sa.create_engine(there), sa.create_engine(here), sa.MetaData()
    found.reflect(source)
    for table in found.tables.values():  # what only SQLite understands
        table.constraints -= {one for one in table.constraints if isinstance(one, sa.CheckConstraint)}
        for column in table.columns:
            column.type, column.server_default = column.type.as_generic(), None
    found.create_all(target)
    with source.connect() as reads, target.begin() as writes:
        for table in found.sorted_tables:
            if rows := [dict(row) for row in reads.execute(sa.select(table)).mappings()]:
                writes.execute(sa.insert(table), rows)
    source.dispose()
    target.dispose()


def _copy_version(registry: Registry, versions: int) -> None:
    engine = sa.create_engine(registry.settings.mlflow)
    with engine.begin() as connection:
        for table in (SqlModelVersion.__table__, SqlModelVersionTag.__table__):
            for row in connection.execute(sa.select(table).where(table.c.version == 1)).mappings().all():
                connection.execute(sa.insert(table), [{**row, "version": n} for n in range(3, versions + 1)])
    engine.dispose()


def test_a_page_holds_the_newest_below_the_one_before_whatever_was_deleted(grown: Registry) -> None:
    gone = {MANY, *range(20, 52), 3}
    engine, version = sa.create_engine(grown.settings.mlflow), SqlModelVersion.__table__.c
    with engine.begin() as connection:  # as MLflow deletes
        deleted = sa.update(SqlModelVersion).where(version.version.in_(gone))
        connection.execute(deleted.values(current_stage=STAGE_DELETED_INTERNAL))
    engine.dispose()
    there = [number for number in range(MANY, 0, -1) if number not in gone]
    assert [made.version for made in grown.versions.all("bot")] == there
    assert grown.versions.newest_of(["bot", "nobody"]) == {"bot": there[0]}
    for size in (2, 7, MANY):
        assert [made.version for made in grown.versions.all("bot", newest=size)] == there[:size]
        found, cursor = list[int](), None
        while True:
            page = grown.versions.page("bot", Ask(limit=size, cursor=cursor))
            found += [made.version for made in page.items]
            assert len(page.items) <= size
            if (cursor := page.next) is None:
                break
        assert found == there
    assert [made.version for made in grown.versions.all("nobody")] == []


def test_the_name_of_a_prompt_in_mlflow_is_refused(registry: Registry, client: MlflowClient, tmp_path: Path) -> None:
    client.register_prompt("bot", template="answer {{question}}")
    with pytest.raises(InvalidInput, match=r"'bot' is a prompt in MLflow; give the model another name"):
        publish_version(registry, tmp_path / "v1")
    assert registry.versions.models() == []


def test_no_model_is_read_whole_to_publish_sign_promote_list_or_watch(
    grown: Registry, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    loaded = list[object]()
    listened = (SqlModelVersion, "load", lambda version, _: loaded.append(version))
    sa.event.listen(*listened)
    request.addfinalizer(lambda: sa.event.remove(*listened))
    made = publish_version(grown, tmp_path / "next")
    assert made.version == MANY + 1
    grown.versions.sign(made)
    grown.gates.approve("bot", made.version, by="ada", reason="test")
    route = promote(grown, "bot", made.version, CHANGE)
    assert grown.versions.aliases_of([route]) == {"bot": Aliases(made.version, None)}
    shadowless = route.model_copy(update={"arms": (Arm(version=1, weight_bp=10_000),)})
    grown.versions.mirror(shadowless)
    assert grown.versions.aliases("bot") == {"champion": 1}
    assert [line.newest_version for line in overview.models(grown)] == [MANY + 1]
    assert [found.version for found in grown.versions.all("bot", newest=2)] == [MANY + 1, MANY]
    assert 0 < len(loaded) < MANY
