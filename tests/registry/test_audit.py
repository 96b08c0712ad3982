"""The audit log: every entry holds the one before it, the database refuses changes, what was altered is found."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection

from tests_support import retraining_request
from tuneloop.registry import Registry, audit
from tuneloop.registry import database as migrations_home
from tuneloop.registry.errors import InvalidInput, Unavailable, Unreadable
from tuneloop.registry.nouns import Arm
from tuneloop.registry.tables import audit as audit_table
from tuneloop.registry.tables import audit_head, retraining

# What JSON columns of the two databases keep each in its own way.
ODD = {
    "much": 1e16,
    "little": 1e-7,
    "none": -0.0,
    "whole": 1.0,
    "text": 'ß\u2028"\\ \U0001f600',
    "list": [None, {"b": 1, "a": []}],
}


def written(registry: Registry, count: int) -> None:
    for n in range(count):
        with registry.database.writing() as connection:
            audit.record(
                connection, at=registry.clock(), actor="ada", action="test", subject=f"bot@{n}", detail={"n": n} | ODD
            )


def altered(registry: Registry, *statements: str) -> None:
    """What somebody with every right on the database does, who then lets it refuse changes again."""
    with registry.database.writing() as connection:
        switched_back_on = _let_change(connection)
        for statement in (*statements, *switched_back_on):
            connection.execute(sa.text(statement))


def _let_change(connection: Connection) -> list[str]:
    """Let the audit log be changed; what forbids it again."""
    if connection.dialect.name != "sqlite":
        connection.execute(sa.text("ALTER TABLE audit DISABLE TRIGGER USER"))
        return ["ALTER TABLE audit ENABLE TRIGGER USER"]
    made = list(connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE type = 'trigger'")).scalars())
    for trigger in ("no_update", "no_delete", "in_order"):
        connection.execute(sa.text(f"DROP TRIGGER IF EXISTS audit_{trigger}"))
    return made


def test_what_is_written_verifies_as_it_grows(registries: Registry) -> None:
    empty = registries.audit.verify()
    assert (empty.entries, empty.newest, empty.faults) == (0, 0, ())
    written(registries, 3)
    registries.gates.approve("bot", 1, by="grace", reason="looked")
    first = registries.audit.verify()
    assert (first.entries, first.newest, first.faults) == (4, 4, ())
    assert first.hash == registries.audit.entries(limit=1)[0].hash
    written(registries, 2)
    later = registries.audit.verify(first.hash)
    assert (later.entries, later.noted, later.faults) == (6, 4, ())
    assert later.hash != first.hash


@pytest.mark.parametrize(
    ("statement", "entry"),
    [
        ("UPDATE audit SET actor = 'eve' WHERE id = 3", 3),
        ("UPDATE audit SET action = 'other' WHERE id = 5", 5),
        ("UPDATE audit SET subject = 'bot@9' WHERE id = 1", 1),
        ("UPDATE audit SET at = '2020-01-01 00:00:00.000000' WHERE id = 2", 2),
        ("UPDATE audit SET detail = '{}' WHERE id = 4", 4),
        ("UPDATE audit SET hash = 'f' WHERE id = 3", 3),
        ("UPDATE audit SET id = 0 WHERE id = 1", 0),
        ("DELETE FROM audit WHERE id = 1", 2),
        ("DELETE FROM audit WHERE id = 3", 4),
        ("INSERT INTO audit SELECT -1, at, actor, action, subject, detail, hash FROM audit WHERE id = 3", -1),
    ],
)
def test_whatever_is_altered_is_found(registries: Registry, statement: str, entry: int) -> None:
    written(registries, 5)
    altered(registries, statement)
    found = registries.audit.verify().faults
    assert f"entry {entry}, or what stood right before it, is not what was written" in found[0]


@pytest.mark.parametrize(("cut", "kept"), [("DELETE FROM audit", 0), ("DELETE FROM audit WHERE id > 4", 4)])
def test_entries_cut_off_the_end_are_missed(registries: Registry, cut: str, kept: int) -> None:
    written(registries, 5)
    altered(registries, cut)
    [fault] = registries.audit.verify().faults
    assert fault.startswith(f"entry {kept} is not the newest that was written, 5: ")


def test_a_log_that_the_database_lets_be_changed_does_not_verify(registries: Registry) -> None:
    written(registries, 1)
    if registries.database.is_sqlite:
        off = {
            "audit_no_update": ["DROP TRIGGER audit_no_update"],
            "audit_no_delete": [
                "DROP TRIGGER audit_no_delete",
                "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT 1; END",
            ],
        }
    else:
        off = {
            "audit_no_change": ["ALTER TABLE audit DISABLE TRIGGER audit_no_change"],
            "audit_no_truncate": ["DROP TRIGGER audit_no_truncate ON audit"],
        }
    for number, statements in enumerate(off.values(), start=1):
        with registries.database.writing() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))
        faults = registries.audit.verify().faults
        assert [fault.split("its trigger ")[1].split()[0] for fault in faults] == list(off)[:number]


def test_whoever_writes_on_behind_somebody_elses_entry_says_so_once(
    registries: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    written(registries, 5)
    assert "somebody else" not in caplog.text
    with registries.database.writing() as connection:
        connection.execute(sa.text(INSERT.format(id=6)))
    written(registries, 2)
    altered(registries, "DELETE FROM audit WHERE id > 3")
    written(registries, 2)
    assert [record.args for record in caplog.records] == [(6, 5), (3, 8)]


INSERT = "INSERT INTO audit SELECT {id}, at, 'eve', action, subject, detail, hash FROM audit WHERE id = 3"


@pytest.mark.parametrize("number", [6, 7, 60])
def test_an_entry_put_behind_the_newest_is_found_and_holds_up_nobody(registries: Registry, number: int) -> None:
    """Whoever may insert rows can do that; what must be on record next, a rollback maybe, still is."""
    written(registries, 5)
    with registries.database.writing() as connection:
        connection.execute(sa.text(INSERT.format(id=number)))
    wrong, foreign = registries.audit.verify().faults
    assert f"entry {number}, or what stood right before it, is not what was written" in wrong
    assert f"entry {number} was not written by tuneloop: the newest that was is 5" in foreign
    written(registries, 1)
    assert registries.audit.entries(limit=1)[0].id == number + 1
    faults = registries.audit.verify().faults
    assert [fault.split(",")[0] for fault in faults] == [f"entry {number}", f"entry {number + 1}"]


@pytest.mark.parametrize("number", [-1, 0, 3, 5])
def test_the_database_lets_nothing_in_before_the_newest(registries: Registry, number: int) -> None:
    written(registries, 5)
    refused = pytest.raises((Unavailable, sa.exc.IntegrityError), match="the audit log is append-only")
    with refused, registries.database.writing() as connection:
        connection.execute(sa.text(INSERT.format(id=number)))
    if registries.database.is_sqlite:
        with refused, registries.database.writing() as connection:
            connection.execute(sa.text(INSERT.format(id=number).replace("INSERT", "INSERT OR REPLACE")))
    assert registries.audit.verify().faults == ()


def test_a_log_that_does_not_know_its_newest_entry_says_so(registries: Registry) -> None:
    written(registries, 2)
    with registries.database.writing() as connection:
        connection.execute(sa.delete(audit_head))
    assert registries.audit.verify().faults == (
        "audit_head, which knows the newest entry, is empty: its row was deleted",
    )
    with pytest.raises(Unreadable, match="the row of audit_head was deleted; bring it back from a copy"):
        written(registries, 1)


def test_what_is_no_hash_was_never_noted(registries: Registry) -> None:
    for noted in ("", "ABC", "F" * 64, "0" * 63, "0" * 64 + "\n", audit.FIRST_HASH):
        with pytest.raises(InvalidInput, match="is no hash of an entry: 64 digits"):
            registries.audit.verify(noted)


def test_a_log_written_anew_from_end_to_end_is_told_by_a_noted_hash_alone(registries: Registry) -> None:
    written(registries, 3)
    noted = registries.audit.verify().hash
    altered(registries, "DELETE FROM audit")
    with registries.database.writing() as connection:
        connection.execute(sa.update(audit_head).values(id=0, hash=audit.FIRST_HASH))
    written(registries, 4)
    assert registries.audit.verify(noted).faults == (), "the same entries at the same time: nothing differs"
    registries.clock.advance(1)  # type: ignore[attr-defined]
    altered(registries, "DELETE FROM audit")
    with registries.database.writing() as connection:
        connection.execute(sa.update(audit_head).values(id=0, hash=audit.FIRST_HASH))
    written(registries, 4)
    assert registries.audit.verify().faults == (), "it fits"
    [fault] = registries.audit.verify(noted).faults
    assert f"no entry has the noted hash {noted}" in fault


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'eve'", "DELETE FROM audit WHERE id = 1"])
def test_the_database_itself_refuses_changes(registries: Registry, statement: str) -> None:
    written(registries, 2)
    refused = pytest.raises((Unavailable, sa.exc.IntegrityError), match="the audit log is append-only")
    with refused, registries.database.writing() as connection:
        connection.execute(sa.text(statement))
    assert registries.audit.verify().faults == ()


def test_a_transaction_that_raises_leaves_no_entry_and_the_next_one_no_gap(registries: Registry) -> None:
    def attempt() -> None:
        with registries.database.writing() as connection:
            audit.record(connection, at=registries.clock(), actor="a", action="test", subject="s", detail={})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        attempt()
    written(registries, 1)
    found = registries.audit.verify()
    assert (found.entries, found.newest, found.faults) == (1, 1, ())


def test_what_was_done_to_a_model_is_found_however_much_was_done_to_others(registries: Registry) -> None:
    now = registries.clock()
    done = [("bot", "route.set"), ("bot@2", "promote"), ("*", "policy.set"), ("bot_2", "promote"), ("bot", "key.new")]
    done += [("other", "promote")] * 10
    with registries.database.writing() as connection:
        for subject, action in done:
            audit.record(connection, at=now, actor="a", action=action, subject=subject, detail={})
    actions = ("route.", "promote", "policy.")
    found = registries.audit.about_model("bot", actions, since=now, until=now, limit=3)
    assert [entry.subject for entry in found] == ["*", "bot@2", "bot"]
    before = now - timedelta(seconds=1)
    assert not registries.audit.about_model("bot", actions, since=before, until=before)


def test_what_is_no_text_is_refused_and_nothing_is_written(registries: Registry) -> None:
    refused = pytest.raises(InvalidInput, match="write it in valid Unicode")
    with refused, registries.database.writing() as connection:
        audit.record(connection, at=registries.clock(), actor="a", action="test", subject="s", detail={"a": "\udcff"})
    assert registries.audit.verify().entries == 0


def test_writers_of_many_models_at_once_make_one_unbroken_log(registries: Registry) -> None:
    """Routes that end a request and moves of that request: nobody waits for another in a circle, no entry is lost."""
    request = registries.retraining.file(retraining_request(registries.clock()), by="monitor")
    failed: list[Exception] = []

    def move(connection: Connection) -> None:
        said = {"outcome": "o"}
        connection.execute(sa.update(retraining).where(retraining.c.id == request.id).values(said))
        audit.record(connection, at=registries.clock(), actor="a", action="test", subject=request.id, detail=said)

    def write(writer: int) -> None:
        for n in range(15):
            if writer % 2:
                with registries.database.writing() as connection:
                    move(connection)
            else:
                registries.routes.write(
                    f"model{writer}",
                    [Arm(version=n + 1, weight_bp=10_000)],
                    by="a",
                    reason="r",
                    expected_revision=n,
                    follow=lambda connection, _: move(connection),
                )

    def told(writer: int) -> None:
        try:
            write(writer)
        except Exception as error:  # noqa: BLE001 (told by the assertion below)
            failed.append(error)

    threads = [threading.Thread(target=told, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    found = registries.audit.verify()
    assert (found.entries, found.newest, found.faults) == (1 + 3 * 15 + 3 * 30, 1 + 3 * 15 + 3 * 30, ())


def test_a_log_from_before_the_hashes_is_chained_and_stays_readable(registries: Registry) -> None:
    written(registries, 4)
    entries = registries.audit.entries()
    config = Config()
    config.set_main_option("script_location", str(Path(migrations_home.__file__).parent / "migrations"))
    with registries.database.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    with registries.database.writing() as connection:
        names = ["at", "actor", "action", "subject", "detail"]  # as the older code writes: the database numbers entries
        older = sa.select(*(audit_table.c[name] for name in names)).where(audit_table.c.id == 4)
        connection.execute(sa.insert(audit_table).from_select(names, older))
        connection.execute(sa.text("DELETE FROM audit WHERE id = 2"))
        damage = f'{{"n": {10**400}}}'  # larger than any number
        connection.execute(sa.text("UPDATE audit SET detail = :damage WHERE id = 3"), {"damage": damage})
    registries.database.upgrade()
    assert [entry.id for entry in registries.audit.entries()] == [5, 4, 3, 1]
    assert registries.audit.entries()[1].detail == entries[0].detail
    found = registries.audit.verify()
    assert found.faults == ("entry 3, or what stood right before it, is not what was written",)
    written(registries, 1)
    assert (registries.audit.verify().entries, registries.audit.verify().newest) == (5, 6)
