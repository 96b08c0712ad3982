"""A database that is there and cannot be used, for a reason nobody foresaw: nothing is lost, and the cause is named."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from http.client import HTTPException
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve.gateway.test_database_away import spool_of, thumb
from serve.gateway.world import Address, World, until
from tests_support import free_port


def set_schema(world: World, revision: str) -> str:
    """Write down that the database has this schema revision; gives the one before."""
    with world.registry.database.writing() as connection:
        before = str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one())
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :r"), {"r": revision})
    return before


def test_with_a_database_newer_than_the_code_everything_is_spooled_and_stored_later(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    with world.process(free_port()) as process:
        gateway = process.address
        until((world.home / "gateway" / "gw" / "last-known-good.json").exists)
        assert gateway.chat().status == 200
        until(lambda: len(world.registry.traffic.window("bot")) == 1)
        process.kill()
        known = set_schema(world, "9999_from_the_future")
        process.start()
        answer = gateway.chat()
        assert answer.status == 200
        assert thumb(gateway, answer.headers["x-request-id"]) == 201
        until(lambda: gateway.metric("tuneloop_records_spooled_total") == 2)
        assert gateway.metric("tuneloop_records_dropped_total") == 0
        assert gateway.metric("tuneloop_registry_up") == 0
        assert "9999_from_the_future" in str(gateway.call("/readyz").json["last_known"])
        set_schema(world, known)
        until(lambda: len(world.registry.traffic.window("bot")) == 2)
        until(lambda: world.registry.traffic.feedback_for([answer.headers["x-request-id"]]))
        until(lambda: gateway.metric("tuneloop_registry_up") == 1)
        until(lambda: gateway.call("/readyz").json == {"ready": True, "reason": "", "last_known": {}, "unsaved": ""})


def test_feedback_acknowledged_onto_the_disk_survives_kill_9_in_the_middle_of_it(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    acknowledged: list[str] = []

    def give(gateway: Address, request_id: str) -> None:
        try:
            while True:
                got = gateway.call("/v1/feedback", {"request_id": request_id, "thumb": "up"})
                acknowledged.append(got.json["id"])
        except (OSError, HTTPException):
            return

    with world.process(free_port()) as process:
        request_id = process.address.chat().headers["x-request-id"]
        until((world.home / "gateway" / "gw" / "last-known-good.json").exists)
        process.kill()
        known = set_schema(world, "9999_from_the_future")
        process.start()
        threads = [threading.Thread(target=give, args=(process.address, request_id)) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(acknowledged) > 50)
        process.kill()
        for thread in threads:
            thread.join()
        assert spool_of(world, "feedback")
        set_schema(world, known)
        process.start()
        until(lambda: spool_of(world, "feedback") == [])
    stored = {item.id for item in world.registry.traffic.feedback_for([request_id])[request_id]}
    assert set(acknowledged) <= stored


@pytest.mark.parametrize(
    ("damage", "cause"),
    [("newer", "9999_from_the_future"), ("garbage", "not a database"), ("folder", "unable to open database file")],
)
def test_without_a_last_view_readyz_names_the_true_cause(tmp_path: Path, world: World, damage: str, cause: str) -> None:
    file = tmp_path / "other.db"
    if damage == "newer":
        with sqlite3.connect(file) as made:
            made.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
            made.execute("INSERT INTO alembic_version VALUES ('9999_from_the_future')")
        made.close()
    elif damage == "garbage":
        file.write_bytes(b"no database at all " * 1_000)
    else:
        file.mkdir()
    with world.process(free_port(), ready=False, TUNELOOP_DATABASE_URL=f"sqlite:///{file}") as process:
        gateway = process.address

        def reason() -> str:
            try:
                return str(gateway.call("/readyz").json["reason"])
            except OSError:
                return ""

        until(lambda: cause in reason(), 15)
        assert gateway.call("/readyz").status == 503
        assert gateway.chat().error["code"] == "not_ready"
        assert gateway.metric("tuneloop_registry_up") == 0


def test_feedback_that_neither_database_nor_disk_takes_gets_a_503_with_the_reason(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    answer = gateway.chat()
    until(lambda: len(world.registry.traffic.window("bot")) == 1)
    with world.registry.database.writing() as connection:
        connection.execute(sa.text("ALTER TABLE feedback RENAME TO feedback_moved"))
    spool = world.home / "gateway" / "gw" / "spool"
    spool.write_text("in the way")
    got = gateway.call("/v1/feedback", {"request_id": answer.headers["x-request-id"], "thumb": "up"})
    assert (got.status, got.error["code"], got.error["type"]) == (503, "not_stored", "server_error")
    assert "the disk refuses this feedback: File exists" in got.error["message"]
    assert str(world.home) not in got.error["message"]
    assert got.headers["retry-after"] == "5"
    spool.unlink()
    assert thumb(gateway, answer.headers["x-request-id"]) == 201
    until(lambda: spool_of(world, "feedback"))
    with world.registry.database.writing() as connection:
        connection.execute(sa.text("ALTER TABLE feedback_moved RENAME TO feedback"))
    until(lambda: world.registry.traffic.feedback_for([answer.headers["x-request-id"]]))


def test_a_database_that_reads_and_does_not_write_costs_no_record_and_fills_no_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    with world.registry.database.writing() as connection:
        connection.execute(sa.text("ALTER TABLE requests RENAME TO requests_moved"))
    ended = time.monotonic() + 4
    asked = 0
    while time.monotonic() < ended:
        assert gateway.chat().status == 200
        asked += 1
        time.sleep(0.02)
    assert gateway.metric("tuneloop_registry_up") == 1
    until(lambda: gateway.metric("tuneloop_records_spooled_total") > 0)
    assert gateway.metric("tuneloop_records_dropped_total") == 0
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) <= 4, said
    with world.registry.database.writing() as connection:
        connection.execute(sa.text("ALTER TABLE requests_moved RENAME TO requests"))
    until(lambda: len(world.registry.traffic.window("bot")) == asked, 10)
    assert gateway.metric("tuneloop_records_dropped_total") == 0
