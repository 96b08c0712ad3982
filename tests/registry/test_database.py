"""The database: its schema is what the tables say, on both kinds, and a missing one is a clear error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from postgres_cluster import PostgresCluster
from tests_support import request_record, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry import database as migrations_home
from tuneloop.registry.database import Database, newest_revision
from tuneloop.registry.errors import Conflict, InvalidInput, Unavailable
from tuneloop.registry.experiments.declaration import Declaration, ExperimentPlan, Primary
from tuneloop.registry.nouns import Arm, Shadow
from tuneloop.registry.policies import RetrainingPolicy
from tuneloop.registry.retraining.budgets import Estimate
from tuneloop.registry.rollouts.rollout import RolloutPlan
from tuneloop.registry.rollouts.steering import declare
from tuneloop.registry.routes.promotion import Change
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.tables import metadata


def test_migrations_make_exactly_the_tables_the_code_uses(registries: Registry) -> None:
    with registries.database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_upgrading_again_and_from_many_threads_changes_nothing(registries: Registry) -> None:
    threads = [threading.Thread(target=registries.database.upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with registries.database.reading() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM alembic_version")).scalar() == 1


def test_a_schema_that_is_not_behind_is_known_without_alembic(
    registries: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = ScriptDirectory(str(Path(migrations_home.__file__).parent / "migrations"))
    assert scripts.get_heads() == [newest_revision()]
    monkeypatch.setitem(sys.modules, "alembic", None)
    registries.database.upgrade()


def test_a_migration_takes_as_long_as_it_takes(postgres: PostgresCluster, tmp_path: Path) -> None:
    """An index of what is on record of years takes longer than any other statement may."""
    limits: dict[str, set[str]] = {"CREATE": set(), "SELECT": set()}

    def noted(connection: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
        if (kind := statement.partition(" ")[0]) in limits:
            limits[kind].add(connection.exec_driver_sql("SHOW statement_timeout").scalar_one())

    with postgres.lent_database() as url, Registry.open(RegistrySettings(home=tmp_path, database_url=url)) as registry:
        sa.event.listen(registry.database.engine, "before_cursor_execute", noted)
        registry.database.downgrade("0016")
        registry.database.upgrade()
        limits["SELECT"].clear()
        registry.traffic.window("bot")
    assert limits == {"CREATE": {"0"}, "SELECT": {"1min"}}


def test_approvals_go_to_the_older_schema_and_back(registries: Registry) -> None:
    """An older tuneloop knows only approvals without an end: whatever else was decided must not become one."""
    gates, database = registries.gates, registries.database
    for version in range(1, 5):
        gates.approve("bot", version, by="ada", reason="first")
    gates.approve("bot", 2, by="grace", reason="second")
    gates.approve("bot", 3, by="grace", reason="for a while", ttl_s=60)
    gates.revoke("bot", 4, by="grace", reason="bad")
    config = Config()
    config.set_main_option("script_location", str(Path(migrations_home.__file__).parent / "migrations"))

    def down() -> None:
        with database.writing() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, "0002")

    with pytest.raises(CommandError, match="cannot say that versions are revoked: bot@4"):
        down()
    assert gates.approver("bot", 4) is None
    gates.approve("bot", 4, by="ada", reason="for a while", ttl_s=60)
    down()
    database.upgrade()
    assert [gates.approver("bot", version) for version in range(1, 5)] == ["ada", "grace", None, None]
    gates.approve("bot", 4, by="ada", reason="after the upgrade")
    assert gates.approver("bot", 4) == "ada"


def test_an_older_databases_routes_have_no_overrides(registries: Registry) -> None:
    database, arms = registries.database, [Arm(version=1, weight_bp=10_000)]
    written = registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=0, overrides={"k": 1})
    config = Config()
    config.set_main_option("script_location", str(Path(migrations_home.__file__).parent / "migrations"))
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
    database.upgrade()
    assert registries.routes.current("bot") == written.model_copy(update={"overrides": {}})
    registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=1)


def _downgraded_and_upgraded(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations_home.__file__).parent / "migrations"))
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    database.upgrade()


def test_experiments_go_with_the_older_schema_and_the_audit_log_stays(registries: Registry) -> None:
    plan = ExperimentPlan(days_seen=0.0, units_seen=0)
    metric = Primary(kind="binary", measure="error", goal="lower", minimum_effect=0.1)
    declared = Declaration(model="bot", hypothesis="h", arms={1: 5_000, 2: 5_000}, control=1, primary=metric)
    made = registries.experiments.new(declared, plan, by="ada", reason="r")
    _downgraded_and_upgraded(registries.database, "0004")
    assert registries.experiments.all() == []
    assert [entry.action for entry in registries.audit.entries(made.id)] == ["experiment.new"]
    again = registries.experiments.new(declared, plan, by="ada", reason="r")
    assert registries.experiments.get(again.id) == again
    arms = [Arm(version=2, weight_bp=5_000), Arm(version=1, weight_bp=5_000)]
    registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
    registries.experiments.start(again.id, revision=1, by="ada", reason="r")
    with pytest.raises(CommandError, match=f"stop those that run: \\['{again.id}'\\]"):
        _downgraded_and_upgraded(registries.database, "0004")


def test_a_rollout_goes_with_the_older_schema_and_its_share_stays(registries: Registry) -> None:
    arms = [Arm(version=2, weight_bp=1_000), Arm(version=1, weight_bp=9_000)]
    written = registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
    registries.gates.approve("bot", 2, by="ada", reason="r")
    declared = declare(registries, "bot", 2, RolloutPlan(), Change("ada", "r"))
    assert registries.rollouts.open("bot") == declared
    with pytest.raises(CommandError, match=f"abort those that are open: \\['{declared.id}'\\]"):
        _downgraded_and_upgraded(registries.database, "0006")
    with registries.database.writing() as connection:
        registries.rollouts.abort(connection, declared, by="ada", reason="r", revision=written.revision)
    arms = list(written.arms)
    registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=1, holdout_bp=500)
    with pytest.raises(CommandError, match=r"set the holdout of these models to 0: \['bot'\]"):
        _downgraded_and_upgraded(registries.database, "0006")
    written = registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=2, holdout_bp=0)
    _downgraded_and_upgraded(registries.database, "0006")
    assert registries.rollouts.all("bot") == []
    assert registries.routes.current("bot") == written
    again = declare(registries, "bot", 2, RolloutPlan(), Change("ada", "r"))
    with pytest.raises(Conflict):
        registries.rollouts.declare(again.model_copy(update={"id": "ro_2"}))


def test_an_older_schema_takes_no_request_that_a_budget_holds_or_that_expired(registries: Registry) -> None:
    database, queue, now = registries.database, registries.retraining, registries.clock()
    waiting = queue.file(retraining_request(now), by="monitor")
    queue.approve(waiting.id, by="ada", reason="yes")
    registries.policies.set("bot", RetrainingPolicy(device_hours_per_day=0.5), by="ada", reason="r")
    claimed = queue.claim("w", lease_s=60)
    assert claimed is not None
    queue.begin(claimed, Estimate(1.0, 1, Decimal("2.50"), "the plan"), by="w")
    with pytest.raises(CommandError, match=f"a budget holds requests or that they expired: \\['{waiting.id}'\\]"):
        _downgraded_and_upgraded(database, "0007")
    queue.approve(waiting.id, by="ada", reason="beyond it")
    again = queue.claim("w", lease_s=60)
    assert again is not None
    queue.begin(again, Estimate(1.0, 1, Decimal("2.50"), "the plan"), by="w")
    assert queue.runs("bot")[0].usd_per_hour == Decimal("2.50")
    _downgraded_and_upgraded(database, "0007")
    assert queue.get(waiting.id) == again.model_copy(update={"budget_waived_by": None})
    assert queue.runs("bot") == []
    assert queue.begin(again, Estimate(0.1, 1, None, "the plan"), by="w").state == "running"


def test_a_shadow_ends_with_the_older_schema_and_everything_else_stays(registries: Registry) -> None:
    arms = [Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)]
    before = registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=0)
    shadow = (Shadow(version=2, share_bp=500),)
    written = registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=1, shadow=shadow)
    asked, copy = request_record(1, registries.clock()), request_record(2, registries.clock(), shadow_of="req-1")
    registries.traffic.add_requests([asked, copy])
    assert registries.traffic.shadows_of("req-1") == [copy]
    _downgraded_and_upgraded(registries.database, "0011")
    assert registries.routes.history("bot") == [written.model_copy(update={"shadow": None}), before]
    assert (registries.traffic.window("bot"), registries.traffic.shadows_of("req-1")) == ([asked], [])
    again = registries.routes.write("bot", arms, by="ada", reason="r", expected_revision=2, shadow=shadow)
    registries.traffic.add_requests([copy, copy])
    assert (registries.routes.current("bot"), registries.traffic.shadows_of("req-1")) == (again, [copy])


def test_a_transaction_that_raises_leaves_nothing(registries: Registry) -> None:
    def attempt() -> None:
        with registries.database.writing() as connection:
            connection.execute(sa.text("DELETE FROM alembic_version"))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        attempt()
    with registries.database.reading() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM alembic_version")).scalar() == 1


def test_a_database_that_is_away_is_one_clear_error() -> None:
    settings = RegistrySettings(database_url="postgresql://me:secret@127.0.0.1:1/none")
    with pytest.raises(Unavailable, match="tuneloop config") as caught:
        Registry.open(settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "database_url 'nonsense' is not a URL"),
        ("", "is not a URL"),
        ("postgresql//me:s3cret@h/db", "is not a URL"),
        ("postgresql://me:s3cret@h:port/db", "is not a URL"),
        ("postgresql://h:s3cret/db", "is not a URL"),
        ("host=h password='s3cret s3cret' user=me", "is not a URL"),
        ("postgresql://me:ab@s3cret@h/db", "write %40 for one in a password"),
        ("mysql://me:s3cret@h/db", "there is no driver for 'mysql'"),
        ("postgresql+asyncpg://me:s3cret@h/db", r"there is no driver for 'postgresql\+asyncpg'"),
        ("nosuch://h/db?user=me&password=s3cret", "there is no driver for 'nosuch'"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        Database(url)
    assert "s3cret" not in str(caught.value)
    assert "`tuneloop config` shows where" in str(caught.value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNELOOP_DATABASE_URL", url)
    assert "s3cret" not in str(RegistrySettings.load().origins())


def test_a_password_among_the_urls_options_is_not_said_either() -> None:
    database = Database("postgresql://127.0.0.1:1/none?user=me&password=s3cret")
    with pytest.raises(Unavailable) as caught, database.reading():
        pass
    assert "password=***" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_schema_newer_than_the_code_is_one_clear_error(registries: Registry) -> None:
    database = registries.database
    with database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(
        Unavailable, match=r"is at schema 9999, which this tuneloop does not know.*a newer tuneloop has"
    ):
        database.upgrade()


def test_an_error_nobody_foresaw_is_unavailable_with_the_drivers_words(registries: Registry) -> None:
    with registries.database.writing() as connection:
        connection.execute(sa.text("DROP TABLE engines"))
    with pytest.raises(Unavailable, match=r"engines.*`tuneloop db upgrade`.*`tuneloop config` shows"):
        registries.fleet.engines()


@pytest.mark.parametrize(
    "damage", [b"this is no database, but a text of some length" * 200, b"SQLite format 3\0" + b"x" * 9_000]
)
def test_a_damaged_database_file_is_one_clear_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "tuneloop.db").write_bytes(damage)
    with pytest.raises(Unavailable, match="damaged or no database: restore it from a copy"):
        Registry.open(RegistrySettings(home=tmp_path))


def test_a_file_where_the_home_should_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(InvalidInput, match="its folder cannot be made"):
        Registry.open(RegistrySettings(home=tmp_path / "home"))


def test_a_database_at_the_newest_schema_is_opened_while_somebody_writes(registry: Registry) -> None:
    """Reading verbs neither write nor wait for a writer."""
    with registry.database.writing(), Registry.open(registry.settings) as reader:
        assert reader.routes.current_all() == {}


def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    """A process writes revisions and says each one only once it is written; killed at once, what it said is there."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from tuneloop.registry import Registry\n"
        "from tuneloop.registry.nouns import Arm\n"
        "from tuneloop.registry.settings import RegistrySettings\n"
        "registry = Registry.open(RegistrySettings(home=Path(sys.argv[1])))\n"
        "for n in range(10_000):\n"
        "    arms = [Arm(version=n + 1, weight_bp=10_000)]\n"
        "    registry.routes.write('bot', arms, by='a', reason='r', expected_revision=n)\n"
        "    os.write(1, b'%d\\n' % (n + 1))\n"
    )
    home = tmp_path / "home"
    with subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
        said += [int(line) for line in writer.stdout.read().split()]
    with Registry.open(RegistrySettings(home=home)) as registry:
        revisions = [route.revision for route in registry.routes.history("bot")]
        assert len(registry.audit.entries("bot", limit=100_000)) == len(revisions)
    assert max(revisions) >= said[-1]
