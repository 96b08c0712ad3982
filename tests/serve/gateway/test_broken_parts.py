"""What cannot be read in the registry costs its own part of a gateway's view; the rest stays as fresh as ever."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve.gateway.test_snapshot import NOW, READY, api_key, engine, route, view
from serve.gateway.world import Address, World, until
from tests_support import free_port
from tuneloop.registry.guard_policy import CurrentGuards
from tuneloop.registry.nouns import ApiKey, EngineState, Route
from tuneloop.serve.gateway.look import Look, follow
from tuneloop.serve.gateway.snapshot import LAST_KNOWN_GOOD, Snapshot


def damage(world: World, statement: str, **values: object) -> None:
    with world.registry.database.writing() as connection:
        assert connection.execute(sa.text(statement), values).rowcount == 1


def last_known(gateway: Address) -> dict[str, str]:
    got = gateway.call("/readyz")
    assert got.status == 200
    return dict(got.json["last_known"])


@pytest.mark.parametrize("error", [OSError("full"), ValueError("no JSON"), RecursionError("unforeseen")])
def test_a_view_that_cannot_be_kept_is_said_and_kept_as_soon_as_it_can_be(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    kept = world.home / "gateway" / "gw" / LAST_KNOWN_GOOD
    until(kept.exists)

    def save(self: Snapshot, folder: Path) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Snapshot, "save", save)
        _, key = world.registry.keys.new("newer", by="test")
        until(lambda: str(error) in gateway.call("/readyz").json["unsaved"])
        assert gateway.metric("tuneloop_view_unsaved") == 1.0
        assert key.id not in kept.read_text()
    until(lambda: gateway.call("/readyz").json["unsaved"] == "")
    assert key.id in kept.read_text()


def test_a_key_no_json_can_hold_costs_its_own_row_alone(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    _, odd = world.registry.keys.new("odd", by="test")
    damage(world, "UPDATE api_keys SET models = :models WHERE id = :id", models='["b\\udcff"]', id=odd.id)
    until(lambda: "keys" in last_known(gateway))
    other, key = world.registry.keys.new("other", by="test")
    until(lambda: Address(gateway.url, other).chat().status == 200)
    world.registry.keys.revoke(key.id, by="test")
    until(lambda: Address(gateway.url, other).chat().status == 401, 2)
    until(lambda: key.id not in (world.home / "gateway" / "gw" / LAST_KNOWN_GOOD).read_text())


ROUTE_DAMAGE = [
    "UPDATE routes SET arms = '[{\"version\": 1, \"weight_bp\": 9}]' WHERE model = 'bot'",  # no whole
    "UPDATE routes SET arms = 'no JSON' WHERE model = 'bot'",
    "UPDATE routes SET \"by\" = CAST(x'ff00fe' AS TEXT) WHERE model = 'bot'",  # no UTF-8
]


@pytest.mark.parametrize("statement", ROUTE_DAMAGE, ids=["no whole", "no JSON", "no UTF-8"])
def test_an_unreadable_route_neither_keeps_a_revoked_key_alive_nor_goes_unsaid(
    world: World, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    other, other_key = world.registry.keys.new("other", by="test")
    gateway = world.gateway()
    assert gateway.chat().status == 200
    assert Address(gateway.url, other).chat().status == 200
    assert last_known(gateway) == {}
    caplog.set_level(logging.ERROR)
    damage(world, statement)
    until(lambda: gateway.metric("tuneloop_registry_up") == 0)
    assert set(last_known(gateway)) == {"routes"}
    assert "cannot be read" in last_known(gateway)["routes"]
    world.registry.keys.revoke(other_key.id, by="test")
    until(lambda: Address(gateway.url, other).chat().status == 401, 2)
    newer, _ = world.registry.keys.new("newer", by="test")
    until(lambda: Address(gateway.url, newer).chat().status == 200, 2)
    assert gateway.metric('tuneloop_registry_part_failures_total{part="routes"}') >= 1
    assert gateway.metric('tuneloop_registry_part_failures_total{part="keys"}') == 0
    assert sum("last known routes" in record.getMessage() for record in caplog.records) == 1


def test_an_unreadable_route_and_the_gateway_starts_again_with_what_it_knew(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    with world.process(free_port()) as process:
        gateway = process.address
        until((world.home / "gateway" / "gw" / LAST_KNOWN_GOOD).exists)
        process.kill()
        damage(world, ROUTE_DAMAGE[0])
        process.start()
        assert gateway.chat().status == 200
        until(lambda: set(last_known(gateway)) == {"routes"})
        whole = '[{"version": 1, "weight_bp": 10000}]'
        damage(world, "UPDATE routes SET arms = :whole WHERE model = 'bot'", whole=whole)
        until(lambda: gateway.metric("tuneloop_registry_up") == 1)
        assert last_known(gateway) == {}


def test_an_unreadable_key_stops_no_new_revision_and_locks_nobody_out(world: World) -> None:
    world.engine("e1", "bot@1", "bot@2")
    world.route((2, 0), (1, 10_000))
    other, other_key = world.registry.keys.new("other", by="test")
    gateway = world.gateway()
    assert Address(gateway.url, other).chat().status == 200
    damage(world, "UPDATE api_keys SET models = '7' WHERE id = :id", id=other_key.id)
    until(lambda: set(last_known(gateway)) == {"keys"})
    assert gateway.metric("tuneloop_registry_up") == 0
    revision = world.route((1, 0), (2, 10_000)).revision
    assert world.registry.fleet.wait_applied("bot", revision, timeout_s=2.0) == ["gw"]
    assert gateway.chat().headers["x-tuneloop-version"] == "bot@2"
    assert Address(gateway.url, other).chat().status == 200


def test_an_unreadable_engine_stops_neither_revisions_nor_the_engines_known(world: World) -> None:
    world.engine("e1", "bot@1", "bot@2")
    world.route((2, 0), (1, 10_000))
    gateway = world.gateway()
    with world.registry.database.writing() as connection:
        columns = "url, base, base_digest, template_digest, state, adapters, detail, max_loras, max_lora_rank, at"
        connection.execute(sa.text(f"INSERT INTO engines (id, {columns}) SELECT 'e9', {columns} FROM engines"))  # noqa: S608 (no input)
        connection.execute(
            sa.text("UPDATE engines SET detail = CAST(x'ff00fe' AS TEXT), at = '2999-01-01' WHERE id = 'e9'")
        )
    until(lambda: set(last_known(gateway)) == {"engines"})
    revision = world.route((1, 0), (2, 10_000)).revision
    assert world.registry.fleet.wait_applied("bot", revision, timeout_s=2.0) == ["gw"]
    assert gateway.chat().headers["x-tuneloop-version"] == "bot@2"


def test_before_every_part_was_read_once_it_is_not_ready_and_says_which(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    damage(world, "UPDATE api_keys SET owner = CAST(x'ff00fe' AS TEXT)")  # no UTF-8
    with world.process(free_port(), ready=False) as process:

        def reason() -> str:
            try:
                return str(process.address.call("/readyz").json["reason"])
            except OSError:
                return ""

        until(lambda: "the keys cannot be read" in reason(), 15)
        assert process.address.call("/readyz").status == 503
        damage(world, "UPDATE api_keys SET owner = 'test'")
        until(lambda: process.address.chat().status == 200)


def test_a_route_the_database_does_not_show_is_served_on_and_not_reported_as_applied(world: World) -> None:
    world.engine("e1", "bot@1", "cat@1", "cat@2")
    world.route((1, 10_000))
    world.route((1, 10_000), (2, 0), model="cat")
    gateway = world.gateway()
    until(lambda: [state.applied for state in world.registry.fleet.gateways()] == [{"bot": 1, "cat": 1}])
    damage(world, "DELETE FROM routes WHERE model = 'bot'")
    until(lambda: [state.applied for state in world.registry.fleet.gateways()] == [{"cat": 1}])
    revision = world.route((2, 10_000), (1, 0), model="cat").revision
    assert world.registry.fleet.wait_applied("cat", revision, timeout_s=2.0) == ["gw"]
    assert gateway.chat(model="cat").headers["x-tuneloop-version"] == "cat@2"
    assert gateway.chat().status == 200


def seen(keys: list[ApiKey] | str, routes: Mapping[str, Route] | str, engines: list[EngineState] | str) -> Look:
    """A look; a text stands for a part that could not be read, and says why."""
    given = {"keys": keys, "routes": routes, "engines": engines}
    return Look(
        at=NOW,
        keys=None if isinstance(keys, str) else keys,
        routes=None if isinstance(routes, str) else routes,
        engines=None if isinstance(engines, str) else engines,
        guards=CurrentGuards(),
        trouble={part: why for part, why in given.items() if isinstance(why, str)},
    )


ONE, TWO = api_key("one"), api_key("two")
KNOWN: Snapshot = view(engine("e1", v1=READY), keys=(ONE, TWO), routes=(route((1, 10_000), revision=3),))


def test_what_a_look_did_not_see_stays_part_by_part() -> None:
    newer = route((2, 10_000), revision=4)
    found = follow(KNOWN, seen(keys="x", routes={"bot": newer}, engines=list(KNOWN.engines)), spare_engines=False)
    assert found.view is not None
    assert (found.view.routes, found.view.keys, found.view.engines) == ({"bot": newer}, KNOWN.keys, KNOWN.engines)
    assert dict(found.trouble) == {"keys": "x"}
    nothing = follow(KNOWN, seen(routes="r", keys="k", engines="e"), spare_engines=False)
    assert nothing.view is not None
    assert nothing.view.same_as(KNOWN)


def test_a_lost_key_or_revision_stays_and_is_named_but_a_revoked_or_expired_one_goes() -> None:
    older = route((2, 10_000), revision=2)
    revoked = ONE.model_copy(update={"revoked_at": NOW})
    found = follow(KNOWN, seen(keys=[revoked], routes={"bot": older}, engines=[]), spare_engines=False)
    assert found.view is not None
    assert found.view.keys == (TWO,)
    assert found.view.routes == KNOWN.routes
    assert found.view.engines == ()
    assert "key_two" in found.trouble["keys"]
    assert "key_one" not in found.trouble["keys"]
    assert "bot revision 3 (there is only 2)" in found.trouble["routes"]
    assert found.lost_models == {"bot"}


def test_engines_get_spared_only_when_asked() -> None:
    fresh = seen(keys=[ONE, TWO], routes=KNOWN.routes, engines=[])
    assert follow(KNOWN, fresh, spare_engines=True).view == KNOWN
    spared = follow(KNOWN, fresh, spare_engines=False).view
    assert spared is not None
    assert spared.engines == ()


def test_without_a_known_view_every_part_is_needed() -> None:
    assert follow(None, seen(keys=[ONE], routes={}, engines="x"), spare_engines=False).view is None
    found = follow(None, seen(keys=[ONE], routes={}, engines=[]), spare_engines=False)
    assert found.view is not None
    assert found.view.keys == (ONE,)


@pytest.mark.parametrize("garbage", [b"", b"\xff\x00", b"[" * 100_000, b'{"taken_at": "2999"}', None])
def test_garbage_for_a_last_known_good_view_is_told_and_written_anew(
    world: World, garbage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    file = world.home / "gateway" / "gw" / LAST_KNOWN_GOOD
    file.parent.mkdir(parents=True)
    if garbage is None:  # no file at all: not even a view that is written can replace it
        file.mkdir()
    else:
        file.write_bytes(garbage)
    gateway = world.gateway()
    assert gateway.chat().status == 200
    said = [record.getMessage() for record in caplog.records]
    assert sum("cannot be read" in line for line in said) == 1
    if garbage is None:
        until(lambda: sum("cannot be written" in record.getMessage() for record in caplog.records) == 1)
        file.rmdir()
    until(lambda: file.is_file() and b'"revision":1' in file.read_bytes())
