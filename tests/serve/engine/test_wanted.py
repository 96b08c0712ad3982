"""What an engine wants comes from the routes; and from memory, while the registry is away."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import TypeAdapter

from tests_support import Clock, beat_gateway, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.files import write_atomically
from tuneloop.registry.fleet import STALE_AFTER_S
from tuneloop.registry.nouns import Arm, GatewayState, Version, utc_now
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.adapters import Base
from tuneloop.serve.engine import wanted
from tuneloop.serve.engine.reconcile import Gateways
from tuneloop.serve.engine.wanted import CUT_OFF_S, MEMORY, PINNED, RegistryWatch, Sight

BASE = Base("base", "sha256:base", "sha256:template")


def watch_of(registry: Registry, home: Path, base: Base = BASE) -> RegistryWatch:
    return RegistryWatch(lambda: registry, engine_id="e1", base=base, home=home)


def route(registry: Registry, *arms: tuple[int, int]) -> None:
    registry.routes.write(
        "bot", [Arm(version=v, weight_bp=w) for v, w in arms], by="t", reason="t", expected_revision=0
    )


def names(sight: Sight | None) -> list[str]:
    assert sight is not None
    return [version.name for version in sight.wanted]


def test_every_arm_of_this_base_is_wanted_the_busiest_first(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        publish_version(registry, tmp_path / f"v{number}")
    publish_version(registry, tmp_path / "v3", base_digest="sha256:other")
    publish_version(registry, tmp_path / "v4", kind="full")
    route(registry, (1, 0), (3, 0), (4, 0), (9, 0), (2, 10_000))
    sight = watch_of(registry, tmp_path).look()
    assert names(sight) == ["bot@2", "bot@1"]
    assert "start an engine with that base" in sight.strange["bot@3"]
    assert "`tuneloop engine --version bot@4`" in sight.strange["bot@4"]
    assert "bot@9 does not exist" in sight.strange["bot@9"]


def test_pinned_versions_are_wanted_after_those_of_the_routes_also_by_an_engine_that_starts_while_the_registry_is_away(
    registry: Registry, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        publish_version(registry, tmp_path / f"v{number}")
    publish_version(registry, tmp_path / "v4", base_digest="sha256:other")
    publish_version(registry, tmp_path / "v5", model="cold")
    route(registry, (1, 0), (2, 10_000))

    def pinning(*pins: str) -> RegistryWatch:
        return RegistryWatch(lambda: registry, engine_id="e1", base=BASE, home=tmp_path, pins=pins)

    sight = pinning("bot@1", "bot@3", "bot@4", "bot@9", "cold@1").look()
    assert names(sight) == ["bot@2", "bot@1", "bot@3", "cold@1"], "one that a route names is the route's"
    assert sight.strange.keys() == {"bot@4", "bot@9"}
    assert names(pinning("bot@3", "cold@1").remembered()) == ["bot@2", "bot@1", "bot@3", "cold@1"]
    assert names(pinning("cold@1").remembered()) == ["bot@2", "bot@1", "cold@1"], "what is no longer pinned is not kept"
    assert names(pinning().look()) == ["bot@2", "bot@1"]
    assert names(pinning("bot@3").remembered()) == ["bot@2", "bot@1"]


def test_gateways_in_flight_and_behind_are_seen(registry: Registry, tmp_path: Path) -> None:
    publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    for gateway, applied in (("g1", 1), ("g2", 0)):
        registry.fleet.beat_gateway(
            GatewayState(
                id=gateway,
                url="http://127.0.0.1:1",
                applied={"bot": applied},
                in_flight={"e1|bot@1": 2, "e2|bot@1": 5},
                dropped_records=0,
                at=utc_now(),
            )
        )
    assert watch_of(registry, tmp_path).look().gateways == Gateways({"bot@1": 4}, frozenset({"bot"}))


def test_a_gateway_that_fell_silent_counts_as_behind_for_a_while_and_one_that_ended_does_not(
    registries: Registry, clock: Clock, tmp_path: Path
) -> None:
    publish_version(registries, tmp_path / "v1")
    route(registries, (1, 10_000))
    watch = watch_of(registries, tmp_path)
    beat_gateway(registries, {"bot": 0}, id="g1", in_flight={"e1|bot@1": 2})
    beat_gateway(registries, {"bot": 1}, id="g2")
    beat_gateway(registries, {"bot": 0}, id="g3")
    registries.fleet.forget_gateway("g3")
    assert watch.look().gateways == Gateways({"bot@1": 2}, frozenset({"bot"}))
    clock.advance(STALE_AFTER_S)
    assert watch.look().gateways == Gateways({}, frozenset(), frozenset({"bot"}))
    clock.advance(CUT_OFF_S - STALE_AFTER_S - 1)
    assert watch.look().gateways == Gateways({}, frozenset(), frozenset({"bot"}))
    clock.advance(1)
    assert watch.look().gateways == Gateways()
    beat_gateway(registries, {"bot": 1}, id="g1")
    with registries.database.writing() as connection:
        connection.execute(sa.text("UPDATE gateways SET applied = '5' WHERE id = 'g1'"))
    clock.advance(STALE_AFTER_S)
    assert watch.look().gateways == Gateways({}, frozenset(), frozenset({"bot"})), "nobody knows what it applies"


def test_with_the_registry_away_the_last_wanted_adapters_are_still_known(registry: Registry, tmp_path: Path) -> None:
    publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    assert watch_of(registry, tmp_path).remembered() is None
    watch_of(registry, tmp_path).look()

    away = RegistrySettings(home=tmp_path, database_url="postgresql://nobody@127.0.0.1:1/none")
    watch = RegistryWatch(lambda: Registry.open(away), engine_id="e1", base=BASE, home=tmp_path)
    assert names(watch.remembered()) == ["bot@1"]
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        watch.look()
    assert names(watch_of(registry, tmp_path, Base("base", "sha256:other", "sha256:template")).remembered()) == []


GARBAGE = [b"", b"\xff\x00", b"{}", b'[{"model": "bot"}]', b"[" * 100_000]


@pytest.mark.parametrize("garbage", GARBAGE, ids=["empty", "no text", "no list", "half", "nested"])
def test_a_memory_that_cannot_be_read_is_told_and_written_anew(
    registry: Registry, tmp_path: Path, garbage: bytes
) -> None:
    publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    (tmp_path / MEMORY).write_bytes(garbage)
    watch = watch_of(registry, tmp_path)
    with pytest.raises(InvalidInput, match=r"wanted\.json cannot be read"):
        watch.remembered()
    assert names(watch.look()) == ["bot@1"]
    assert names(watch_of(registry, tmp_path).remembered()) == ["bot@1"]


def test_a_damaged_memory_of_pins_takes_nothing_from_what_the_routes_name(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        publish_version(registry, tmp_path / f"v{number}")
    route(registry, (1, 10_000))

    def pinning() -> RegistryWatch:
        return RegistryWatch(lambda: registry, engine_id="e1", base=BASE, home=tmp_path, pins=["bot@2"])

    pinning().look()
    (tmp_path / PINNED).write_bytes(b"[{")
    sight = pinning().remembered()
    assert names(sight) == ["bot@1"]
    assert sight is not None
    assert f"{PINNED} cannot be read" in sight.strange[PINNED]
    assert names(pinning().look()) == ["bot@1", "bot@2"]
    assert pinning().remembered() == Sight(pinning().look().wanted), "written anew"


def test_a_route_that_is_shown_no_more_unloads_nothing_not_even_after_a_start(
    registry: Registry, tmp_path: Path
) -> None:
    publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    watch = watch_of(registry, tmp_path)
    assert names(watch.look()) == ["bot@1"]
    with registry.database.writing() as connection:
        connection.execute(sa.text("DELETE FROM routes"))
    assert names(watch.look()) == ["bot@1"]
    again = watch_of(registry, tmp_path)
    assert names(again.remembered()) == ["bot@1"]
    sight = again.look()
    assert names(sight) == ["bot@1"]
    assert sight.strange == {"bot@1": "the registry shows no route of bot any more"}


def test_a_gateway_that_cannot_be_read_keeps_no_adapter_from_being_wanted(registry: Registry, tmp_path: Path) -> None:
    publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    gateway = GatewayState(id="g1", url="http://x", applied={}, in_flight={}, dropped_records=0, at=utc_now())
    registry.fleet.beat_gateway(gateway)
    with registry.database.writing() as connection:
        connection.execute(sa.text("UPDATE gateways SET url = CAST(x'ff00fe' AS TEXT)"))
    sight = watch_of(registry, tmp_path).look()
    assert names(sight) == ["bot@1"]
    assert sight.gateways is None
    assert "nothing is unloaded" in sight.strange["gateways"]


def test_one_gateway_of_several_that_cannot_be_read_may_still_send_here(registry: Registry, tmp_path: Path) -> None:
    publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    for name in ("g1", "g2"):
        beat_gateway(registry, {}, id=name, at=utc_now())
    with registry.database.writing() as connection:
        connection.execute(sa.text("UPDATE gateways SET applied = '5' WHERE id = 'g2'"))
    sight = watch_of(registry, tmp_path).look()
    assert sight.gateways is None
    assert "nothing is unloaded" in sight.strange["gateways"]


def test_a_memory_that_cannot_be_written_keeps_no_adapter_from_being_wanted(registry: Registry, tmp_path: Path) -> None:
    publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    (tmp_path / MEMORY).mkdir()
    sight = watch_of(registry, tmp_path).look()
    assert names(sight) == ["bot@1"]
    assert "cannot be written" in sight.strange[MEMORY]


def test_an_mlflow_that_hangs_holds_a_look_up_once_and_hides_no_version_that_is_known(
    registry: Registry, registry_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    watch_of(registry, tmp_path).look()
    arms = [Arm(version=v, weight_bp=w) for v, w in ((2, 0), (3, 0), (1, 10_000))]
    registry.routes.write("bot", arms, by="t", reason="t", expected_revision=1)
    monkeypatch.setattr(wanted, "LOOKUP_TIMEOUT_S", 1.5)
    with socket.socket() as silent:  # connections are taken, nothing is ever said
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = RegistrySettings(
            home=registry_home,
            database_url=registry.settings.database,
            mlflow_uri=f"http://127.0.0.1:{silent.getsockname()[1]}",
        )
        with Registry.open(settings) as hanging:
            _ = hanging.versions
            watch = watch_of(hanging, tmp_path)
            watch.remembered()
            began = time.monotonic()
            sight = watch.look()
            assert time.monotonic() - began < 2.9, "asked once, not once a version"
    assert names(sight) == ["bot@1"]
    assert "did not answer within 1.5 s" in sight.strange["bot@2"]
    assert "did not answer within 1.5 s" in sight.strange["bot@3"]


def test_a_version_that_was_refused_is_loaded_once_somebody_has_signed_it(registry: Registry, tmp_path: Path) -> None:
    """Also by an agent that remembers it from an earlier life."""
    made = publish_version(registry, tmp_path / "v1")
    route(registry, (1, 10_000))
    unsigned = made.model_copy(update={"signed_by": None})
    write_atomically(tmp_path / MEMORY, TypeAdapter(tuple[Version, ...]).dump_json((unsigned,)))
    watch = watch_of(registry, tmp_path)
    assert watch.remembered() == Sight((unsigned,))
    with pytest.raises(InvalidInput, match="bot@1 is not signed"):
        watch.fetch(watch.look().wanted[0], tmp_path / "files")
    assert watch.fetch(watch.look().wanted[0], tmp_path / "files").is_dir()
