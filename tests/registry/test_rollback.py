"""Going back: it loads nothing, waits for nobody, and returns to who served before, exactly."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests_support import beat_engine, beat_gateway, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, NotFound, Refused, Unreadable
from tuneloop.registry.routes import promotion
from tuneloop.registry.routes.assignment import assign
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.settings import RegistrySettings

CHANGE = Change("ada", "test")


def test_a_damaged_revision_of_before_is_left_out_of_the_history_and_a_rollback_must_be_told_where_to(
    two_versions: Registry,
) -> None:
    for number in (2, 1, 2):
        promote(two_versions, "bot", number, CHANGE)
    with two_versions.database.writing() as connection:
        connection.execute(sa.text("UPDATE routes SET arms = '5' WHERE revision = 3"))
    history = two_versions.routes.history("bot")
    assert ([route.revision for route in history], len(history.unreadable)) == ([4, 2, 1], 1)
    with pytest.raises(Unreadable, match="say where to go back to: `tuneloop rollback bot --to REVISION`"):
        rollback(two_versions, "bot", CHANGE)
    assert rollback(two_versions, "bot", CHANGE, to_revision=1).champion == 1


def test_promotion_keeps_the_former_champion_loaded_and_rollback_returns_to_it(two_versions: Registry) -> None:
    assert promote(two_versions, "bot", 2, CHANGE).split == {1: 0, 2: 10_000}
    assert two_versions.versions.aliases("bot")["champion"] == 2
    assert rollback(two_versions, "bot", CHANGE).split == {2: 0, 1: 10_000}
    assert two_versions.versions.aliases("bot")["champion"] == 1


def test_a_second_rollback_goes_further_back_and_never_forward(two_versions: Registry, tmp_path: Path) -> None:
    publish_version(two_versions, tmp_path / "v3")
    two_versions.gates.approve("bot", 3, by="ada", reason="test")
    beat_engine(two_versions, "bot@1", "bot@2", "bot@3")
    promote(two_versions, "bot", 2, CHANGE)
    promote(two_versions, "bot", 3, CHANGE)
    assert rollback(two_versions, "bot", CHANGE).champion == 2
    assert rollback(two_versions, "bot", CHANGE).champion == 1
    with pytest.raises(Refused, match="nothing else served bot before bot@1: nothing to go back to"):
        rollback(two_versions, "bot", CHANGE)
    assert promote(two_versions, "bot", 3, CHANGE).champion == 3  # forward again, by name
    assert rollback(two_versions, "bot", CHANGE).champion == 1


def test_a_version_promoted_again_on_purpose_is_rolled_back_like_any_other(two_versions: Registry) -> None:
    promote(two_versions, "bot", 2, CHANGE)
    promote(two_versions, "bot", 1, CHANGE)
    assert rollback(two_versions, "bot", CHANGE).champion == 2
    assert rollback(two_versions, "bot", CHANGE).champion == 1


def test_rollback_of_a_canary_is_the_exact_inverse(two_versions: Registry) -> None:
    set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    assert two_versions.versions.aliases("bot") == {"champion": 1, "challenger": 2}
    assert rollback(two_versions, "bot", CHANGE).split == {2: 0, 1: 10_000}
    assert two_versions.versions.aliases("bot") == {"champion": 1}


def test_rollback_to_a_named_revision(two_versions: Registry) -> None:
    set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    promote(two_versions, "bot", 2, CHANGE)
    assert rollback(two_versions, "bot", CHANGE, to_revision=2).split == {2: 1_000, 1: 9_000}
    with pytest.raises(NotFound, match="no revision 77"):
        rollback(two_versions, "bot", CHANGE, to_revision=77)


def test_rollback_to_a_named_revision_gives_every_key_the_arm_it_had(two_versions: Registry) -> None:
    canary = set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    promote(two_versions, "bot", 2, CHANGE)
    back = rollback(two_versions, "bot", CHANGE, to_revision=canary.revision)
    assert (back.arms, back.champion) == (canary.arms, 1)
    keys = [f"user-{i}" for i in range(500)]
    assert [assign(back, key) for key in keys] == [assign(canary, key) for key in keys]


def test_a_rollback_needs_no_mlflow_no_free_slot_and_no_approval_of_the_champion(
    two_versions: Registry, registry_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    beat_engine(two_versions, "bot@1", "bot@2", max_loras=1)
    with two_versions.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM approvals")
    monkeypatch.setattr(promotion, "MIRROR_TIMEOUT_S", 0.5)
    with Registry.open(RegistrySettings(home=registry_home, mlflow_uri="http://127.0.0.1:1")) as cut_off:
        assert rollback(cut_off, "bot", CHANGE).split == {2: 0, 1: 10_000}
    assert "revision 3 of bot is in force, but MLflow's aliases do not follow it yet" in caplog.text


def test_with_an_mlflow_that_never_answers_a_rollback_tells_the_gateways_and_ends_within_seconds(
    two_versions: Registry, registry_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    promote(two_versions, "bot", 2, CHANGE)
    beat_gateway(two_versions, {"bot": 3})
    with socket.socket() as silent:  # connections are taken, nothing is ever said
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = RegistrySettings(home=registry_home, mlflow_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with Registry.open(settings) as cut_off:
            began = time.monotonic()
            assert rollback(cut_off, "bot", CHANGE).split == {2: 0, 1: 10_000}
            assert time.monotonic() - began < 10
    assert "did not answer within 5 s" in caplog.text


def test_an_expected_revision_that_is_past_stops_a_rollback_and_a_promotion(two_versions: Registry) -> None:
    set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, Change("grace", "canary"))
    with pytest.raises(Conflict, match="grace wrote revision 2"):
        rollback(two_versions, "bot", CHANGE, expected_revision=1)
    with pytest.raises(Conflict, match="grace wrote revision 2"):
        promote(two_versions, "bot", 2, CHANGE, expected_revision=1)
    assert two_versions.routes.current("bot").revision == 2


def test_there_is_nothing_to_roll_back_to_before_a_second_champion(two_versions: Registry) -> None:
    with pytest.raises(Refused, match="nothing to go back to"):
        rollback(two_versions, "bot", CHANGE)


@pytest.mark.parametrize("to_revision", [None, 2])
def test_going_back_to_what_nobody_approved_needs_force_and_is_on_record(
    two_versions: Registry, tmp_path: Path, to_revision: int | None
) -> None:
    publish_version(two_versions, tmp_path / "v3")
    beat_engine(two_versions, "bot@1", "bot@2", "bot@3")
    promote(two_versions, "bot", 3, Change("ada", "burning", force=True))
    promote(two_versions, "bot", 2, CHANGE)
    with pytest.raises(Refused, match=r"bot@3 is not approved \(no gate has judged it\).*--force"):
        rollback(two_versions, "bot", CHANGE, to_revision=to_revision)
    back = rollback(two_versions, "bot", Change("ada", "still burning", force=True), to_revision=to_revision)
    assert (back.champion, back.forced, back.reason) == (3, True, "still burning")
    entry = two_versions.audit.entries("bot")[0]
    assert (entry.action, entry.detail["forced"]) == ("route.rollback", True)
