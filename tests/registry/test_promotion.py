"""Promotion: nothing unapproved or unloaded gets a share, and taking it back loads nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.tracking import MlflowClient

from tests_support import beat_engine, beat_gateway, publish_version, retraining_request
from tuneloop.registry import Registry, audit
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Refused, Unavailable, Unreadable
from tuneloop.registry.nouns import Arm, RetrainingState, Version, version_name
from tuneloop.registry.routes import promotion, staging
from tuneloop.registry.routes.assignment import assign, key_hash, overridden
from tuneloop.registry.routes.promotion import Change, hold_out, override, promote, rollback, set_route
from tuneloop.registry.settings import RegistrySettings

CHANGE = Change("ada", "test")


@pytest.fixture
def two_versions(registry: Registry, tmp_path: Path) -> Registry:
    """`bot@1` serves everything on a live engine; `bot@2` is approved and loaded too."""
    for number in (1, 2):
        publish_version(registry, tmp_path / f"v{number}")
        registry.gates.approve("bot", number, by="ada", reason="test")
    promote(registry, "bot", 1, CHANGE)
    beat_engine(registry, "bot@1", "bot@2")
    return registry


def test_a_damaged_revision_of_before_is_left_out_of_the_history_and_a_rollback_must_be_told_where_to(
    two_versions: Registry,
) -> None:
    promote(two_versions, "bot", 2, CHANGE)
    promote(two_versions, "bot", 1, CHANGE)
    with two_versions.database.writing() as connection:
        connection.execute(sa.text("UPDATE routes SET arms = '5' WHERE revision = 1"))
    history = two_versions.routes.history("bot")
    assert ([route.revision for route in history], len(history.unreadable)) == ([3, 2], 1)
    with pytest.raises(Unreadable, match="say where to go back to: `tuneloop rollback bot --to REVISION`"):
        rollback(two_versions, "bot", CHANGE)
    assert rollback(two_versions, "bot", CHANGE, to_revision=2).champion == 2


def test_an_approval_revoked_while_an_engine_still_loads_the_version_holds_the_promotion(
    two_versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = staging.stage

    def revoked_meanwhile(*arguments: Any, **named: Any) -> int:
        revision = staged(*arguments, **named)
        two_versions.gates.revoke("bot", 2, by="grace", reason="seen something")
        return revision

    monkeypatch.setattr(promotion, "stage", revoked_meanwhile)
    with pytest.raises(Refused, match="its approval was revoked by grace: seen something"):
        promote(two_versions, "bot", 2, CHANGE)
    assert two_versions.routes.current("bot").champion == 1
    assert two_versions.audit.verify().faults == ()
    promote(two_versions, "bot", 2, Change("ada", "test", force=True))
    assert two_versions.routes.current("bot").champion == 2


def test_what_engines_would_refuse_for_its_signature_gets_no_share(two_versions: Registry, tmp_path: Path) -> None:
    made = publish_version(two_versions, tmp_path / "v3")
    client = MlflowClient(two_versions.settings.mlflow, two_versions.settings.mlflow)
    fields = json.loads(client.get_model_version("bot", "3").tags["tuneloop.version"]) | {"signed_by": None}
    client.set_model_version_tag("bot", "3", "tuneloop.version", json.dumps(fields))
    two_versions.gates.approve("bot", 3, by="ada", reason="test")
    with pytest.raises(Refused, match=r"bot@3 is not signed, and engines refuse it; .*`tuneloop sign bot@3"):
        promote(two_versions, "bot", 3, CHANGE)
    two_versions.versions.sign(two_versions.versions.get("bot", 3), tmp_path / "files")
    beat_engine(two_versions, "bot@1", "bot@2", made.name)
    assert promote(two_versions, "bot", 3, CHANGE).champion == 3


def test_engines_that_serve_their_base_alone_get_no_adapter(two_versions: Registry, tmp_path: Path) -> None:
    publish_version(two_versions, tmp_path / "v3")
    two_versions.gates.approve("bot", 3, by="ada", reason="test")
    two_versions.fleet.forget_engine("e1")
    beat_engine(two_versions, id="alone", max_loras=0)
    with pytest.raises(Refused, match="every live engine serves its base alone"):
        promote(two_versions, "bot", 3, CHANGE)


def test_a_testers_key_gets_the_version_it_was_given_and_everybody_else_what_the_split_says(
    two_versions: Registry, tmp_path: Path
) -> None:
    publish_version(two_versions, tmp_path / "v3")  # which nobody has approved
    beat_engine(two_versions, "bot@1", "bot@2", "bot@3")
    with pytest.raises(InvalidInput, match=r"bot@3 is not in the route of bot .*tuneloop route set bot 1=10000 3=0"):
        override(two_versions, "bot", {"tester": 3}, CHANGE)
    set_route(two_versions, "bot", {3: 0, 1: 10_000}, CHANGE)
    made = override(two_versions, "bot", {"tester": 3, "boss": 1}, CHANGE)
    assert (made.split, overridden(made, "tester"), overridden(made, "boss")) == ({3: 0, 1: 10_000}, 3, 1)
    assert {overridden(made, f"user-{n}") for n in range(100)} == {None}
    entry = two_versions.audit.entries("bot")[0]
    assert (entry.action, entry.detail["overrides"]) == ("route.override", {key_hash("tester"): 3, key_hash("boss"): 1})
    raised = set_route(two_versions, "bot", {3: 0, 2: 5_000, 1: 5_000}, CHANGE)
    assert raised.overrides == made.overrides, "a change of the split leaves testers where they are"
    back = override(two_versions, "bot", {"boss": None, "nobody": None}, CHANGE)
    assert list(back.overrides.values()) == [3]
    without = set_route(two_versions, "bot", {2: 5_000, 1: 5_000}, CHANGE)
    assert without.overrides == {}, "what the route no longer names is nobody's"
    with pytest.raises(Conflict):
        override(two_versions, "bot", {"tester": 1}, CHANGE, expected_revision=made.revision)
    with pytest.raises(InvalidInput, match="an empty key is nobody's"):
        override(two_versions, "bot", {" ": 1}, CHANGE)


def test_a_holdout_stays_over_other_changes_until_it_is_given_back(two_versions: Registry) -> None:
    held = hold_out(two_versions, "bot", 500, CHANGE)
    assert (held.split, held.holdout_bp) == ({1: 10_000}, 500)
    entry = two_versions.audit.entries("bot")[0]
    assert (entry.action, entry.detail["holdout_bp"]) == ("route.holdout", 500)
    assert set_route(two_versions, "bot", {2: 5_000, 1: 5_000}, CHANGE).holdout_bp == 500
    assert override(two_versions, "bot", {"tester": 2}, CHANGE).holdout_bp == 500
    assert rollback(two_versions, "bot", CHANGE).holdout_bp == 500
    freed = hold_out(two_versions, "bot", 0, CHANGE)
    assert (freed.holdout_bp, overridden(freed, "tester")) == (0, 2)
    for share_bp in (-1, 10_000):
        with pytest.raises(InvalidInput, match=r"is not from 0 to 9999 basis points"):
            hold_out(two_versions, "bot", share_bp, CHANGE)
    with pytest.raises(Conflict):
        hold_out(two_versions, "bot", 100, CHANGE, expected_revision=held.revision)


def test_a_version_that_does_not_exist_is_refused_and_nothing_changes(two_versions: Registry) -> None:
    with pytest.raises(NotFound, match="bot@7 does not exist; known: bot@2, bot@1"):
        promote(two_versions, "bot", 7, CHANGE)
    assert two_versions.routes.current("bot").revision == 1


def test_weights_that_are_no_whole_are_refused_and_nothing_changes(two_versions: Registry) -> None:
    with pytest.raises(InvalidInput, match="sum to 9500, not 10000"):
        set_route(two_versions, "bot", {2: 500, 1: 9_000}, CHANGE)
    assert two_versions.routes.current("bot").revision == 1


def test_nothing_unapproved_serves_unless_forced_on_record(two_versions: Registry, tmp_path: Path) -> None:
    publish_version(two_versions, tmp_path / "v3")
    beat_engine(two_versions, "bot@1", "bot@2", "bot@3")
    with pytest.raises(Refused, match="bot@3 is not approved"):
        promote(two_versions, "bot", 3, CHANGE)
    route = promote(two_versions, "bot", 3, Change("ada", "burning", force=True))
    assert route.forced
    assert two_versions.audit.entries("bot")[0].detail["forced"] is True


def test_whole_weights_get_a_share_once_an_engine_was_started_for_them(two_versions: Registry, tmp_path: Path) -> None:
    publish_version(two_versions, tmp_path / "v3", kind="full")
    two_versions.gates.approve("bot", 3, by="ada", reason="test")
    beat_engine(two_versions, "bot@1")
    with pytest.raises(Refused, match=r"bot@3 is whole weights.*`tuneloop engine --version bot@3`"):
        promote(two_versions, "bot", 3, CHANGE)
    assert two_versions.routes.current("bot").revision == 1
    beat_engine(two_versions, "bot@3", id="whole", max_loras=0)
    assert promote(two_versions, "bot", 3, CHANGE).champion == 3


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


def test_with_mlflow_away_what_is_not_loaded_yet_is_refused_within_the_time(
    two_versions: Registry, registry_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "LOOKUP_TIMEOUT_S", 0.5)
    with Registry.open(RegistrySettings(home=registry_home, mlflow_uri="http://127.0.0.1:1")) as cut_off:
        with pytest.raises(Unavailable, match=r"MLflow at http://127\.0\.0\.1:1 did not answer within 0\.5 s"):
            promote(cut_off, "bot", 2, CHANGE)
        assert cut_off.routes.current("bot").revision == 1


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


def test_a_version_gets_its_share_only_once_an_engine_serves_it(two_versions: Registry) -> None:
    beat_engine(two_versions, "bot@1")
    done: list[dict[int, int]] = []
    changing = threading.Thread(target=lambda: done.append(promote(two_versions, "bot", 2, CHANGE).split))
    changing.start()
    deadline = time.monotonic() + 10
    while two_versions.routes.current("bot").revision == 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert two_versions.routes.current("bot").split == {2: 0, 1: 10_000}  # staged: engines load it, nobody gets it
    assert not done
    beat_engine(two_versions, "bot@1", "bot@2")
    changing.join(timeout=10)
    assert done == [{1: 0, 2: 10_000}]


def test_what_cannot_be_loaded_is_taken_out_of_the_route_again(
    two_versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "LOAD_TIMEOUT_S", 0.1)
    beat_engine(two_versions, "bot@1", detail="disk is full")
    with pytest.raises(Unavailable, match=r"no live engine serves bot@2.*disk is full"):
        promote(two_versions, "bot", 2, CHANGE)
    assert two_versions.routes.current("bot").split == {1: 10_000}
    actions = [entry.action for entry in two_versions.audit.entries("bot")]
    assert actions == ["route.unstage", "route.stage", "version.promote"]


def test_staging_lets_go_of_what_the_new_route_will_not_keep(two_versions: Registry, tmp_path: Path) -> None:
    """Two slots: the version kept for rollback leaves as the next one comes, or the engine could never load it."""
    promote(two_versions, "bot", 2, CHANGE)
    publish_version(two_versions, tmp_path / "v3")
    two_versions.gates.approve("bot", 3, by="ada", reason="test")
    beat_engine(two_versions, "bot@1", "bot@2", max_loras=3)
    with ThreadPoolExecutor() as pool:
        changing = pool.submit(promote, two_versions, "bot", 3, CHANGE)
        deadline = time.monotonic() + 10
        while two_versions.routes.current("bot").revision == 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert two_versions.routes.current("bot").split == {3: 0, 2: 10_000}
        beat_engine(two_versions, "bot@2", "bot@3", max_loras=3)
        assert changing.result(timeout=10).split == {2: 0, 3: 10_000}


def test_an_adapter_of_another_base_or_template_is_refused_before_it_is_written(
    two_versions: Registry, tmp_path: Path
) -> None:
    publish_version(two_versions, tmp_path / "v3", base="other-base", base_digest="sha256:other")
    publish_version(two_versions, tmp_path / "v4", template_digest="sha256:chatml")
    force = Change("ada", "test", force=True)
    with pytest.raises(Refused, match=r"bot@3 was trained on other-base sha256:other.*e1 has base sha256:base"):
        promote(two_versions, "bot", 3, force)
    with pytest.raises(Refused, match=r"bot@4 was trained with the chat template sha256:chatml"):
        promote(two_versions, "bot", 4, force)
    assert two_versions.routes.current("bot").revision == 1


def test_of_other_models_only_what_an_engine_may_come_to_hold_is_asked_of_mlflow_and_what_is_gone_blocks_nobody(
    two_versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def route(model: str, at: datetime) -> None:
        monkeypatch.setattr(two_versions.routes, "_clock", lambda: at)
        arms = [Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)]
        two_versions.routes.write(model, arms, by="ada", reason="r", expected_revision=0)

    now = two_versions.clock()
    for model, seen in [("elsewhere", False), ("held", False), ("gone", True)]:
        route(model, now if seen else now - timedelta(minutes=5))
    monkeypatch.setattr(two_versions.routes, "_clock", lambda: now)
    asked: list[str] = []
    get = two_versions.versions.get

    def noted(model: str, number: int) -> Version:
        asked.append(version_name(model, number))
        return get(model, number)

    monkeypatch.setattr(two_versions.versions, "get", noted)
    wanted = {2: 1_000, 1: 9_000}
    beat_engine(two_versions, "bot@1", "held@1", "held@2", max_loras=4)
    with pytest.raises(Refused, match="holds 3 adapters, the routes would name 4"):
        set_route(two_versions, "bot", wanted, CHANGE)
    assert {name for name in asked if not name.startswith("bot@")} == {"gone@1", "gone@2"}
    beat_engine(two_versions, "bot@1", "bot@2", "held@1", "held@2", max_loras=5)
    assert set_route(two_versions, "bot", wanted, CHANGE).split == wanted


def test_an_adapter_no_engine_can_hold_is_refused_before_it_is_written(two_versions: Registry, tmp_path: Path) -> None:
    beat_engine(two_versions, "bot@1", "bot@2", max_loras=2)
    with pytest.raises(Refused, match="holds 1 adapters"):
        set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    publish_version(two_versions, tmp_path / "v3", rank=64)
    beat_engine(two_versions, "bot@1", "bot@2")
    with pytest.raises(Refused, match=r"rank 64.*--max-lora-rank 64"):
        promote(two_versions, "bot", 3, Change("ada", "test", force=True))
    assert two_versions.routes.current("bot").revision == 1


def test_an_expected_revision_that_is_past_says_who_won(two_versions: Registry) -> None:
    set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, Change("grace", "canary"))
    with pytest.raises(Conflict, match="grace wrote revision 2"):
        set_route(two_versions, "bot", {2: 5_000, 1: 5_000}, CHANGE, expected_revision=1)


def test_a_request_is_shipped_even_when_a_gateway_lags(
    two_versions: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "APPLY_TIMEOUT_S", 0.1)
    request = two_versions.retraining.file(
        retraining_request(two_versions.clock(), state=RetrainingState.GATED, result_version=3), by="monitor"
    )
    made = publish_version(two_versions, tmp_path / "v3", request_id=request.id, parent=1)
    two_versions.gates.approve("bot", made.version, by="ada", reason="test")
    beat_engine(two_versions, "bot@1", "bot@2", made.name)
    beat_gateway(two_versions, {"bot": 1})
    with pytest.raises(Unavailable, match="gateways do not apply it: g1"):
        promote(two_versions, "bot", made.version, CHANGE)
    assert two_versions.routes.current("bot").champion == made.version
    assert two_versions.retraining.get(request.id).state == "shipped"


def test_a_route_and_the_end_of_its_request_are_written_together_or_not_at_all(
    two_versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = two_versions.retraining.file(
        retraining_request(two_versions.clock(), state=RetrainingState.GATED, result_version=2), by="monitor"
    )
    monkeypatch.setattr(audit, "record", _fails_at("retraining.shipped", audit.record))
    with pytest.raises(RuntimeError, match="cut off"):
        promote(two_versions, "bot", 2, CHANGE)
    assert two_versions.routes.current("bot").champion == 1
    assert two_versions.retraining.get(request.id).state == "gated"
    monkeypatch.undo()
    promote(two_versions, "bot", 2, CHANGE)
    assert two_versions.retraining.get(request.id).state == "shipped"


def _fails_at(action: str, record: Callable[..., None]) -> Callable[..., None]:
    def recorded(*arguments: object, **named: object) -> None:
        if named["action"] == action:
            raise RuntimeError("cut off")
        record(*arguments, **named)

    return recorded


def test_promoting_a_retrained_version_ships_its_request(two_versions: Registry, tmp_path: Path) -> None:
    request = two_versions.retraining.file(
        retraining_request(two_versions.clock(), state=RetrainingState.GATED, idempotency_key="g", result_version=3),
        by="monitor",
    )
    made = publish_version(two_versions, tmp_path / "v3", request_id=request.id, parent=1)
    two_versions.gates.approve("bot", made.version, by="ada", reason="test")
    beat_engine(two_versions, "bot@1", "bot@2", made.name)
    promote(two_versions, "bot", made.version, CHANGE)
    assert two_versions.retraining.get(request.id).state == "shipped"


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


def test_a_request_is_closed_while_mlflow_is_away(
    two_versions: Registry, registry_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "MIRROR_TIMEOUT_S", 0.5)
    request = two_versions.retraining.file(
        retraining_request(two_versions.clock(), state=RetrainingState.GATED, result_version=2), by="monitor"
    )
    set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    with Registry.open(RegistrySettings(home=registry_home, mlflow_uri="http://127.0.0.1:1")) as cut_off:
        rollback(cut_off, "bot", CHANGE)
        assert cut_off.retraining.get(request.id).state == "rejected"


@pytest.mark.parametrize(("split", "state"), [({3: 10_000, 1: 0}, "shipped"), ({3: 0, 1: 10_000}, "rejected")])
def test_a_route_set_by_hand_closes_the_request_too(
    two_versions: Registry, tmp_path: Path, split: dict[int, int], state: str
) -> None:
    request = two_versions.retraining.file(
        retraining_request(two_versions.clock(), state=RetrainingState.GATED, idempotency_key="g", result_version=3),
        by="monitor",
    )
    made = publish_version(two_versions, tmp_path / "v3", request_id=request.id, parent=1)
    two_versions.gates.approve("bot", made.version, by="ada", reason="test")
    beat_engine(two_versions, "bot@1", "bot@2", made.name)
    set_route(two_versions, "bot", {made.version: 1_000, 1: 9_000}, CHANGE)
    assert two_versions.retraining.get(request.id).state == "gated"
    set_route(two_versions, "bot", split, CHANGE)
    assert two_versions.retraining.get(request.id).state == state


def test_a_version_that_was_deleted_in_mlflow_gets_no_more_though_the_route_names_it(two_versions: Registry) -> None:
    before = set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    uri = two_versions.settings.mlflow
    MlflowClient(uri, uri).delete_model_version("bot", "2")
    for change in (CHANGE, Change("ada", "at any price", force=True)):
        with pytest.raises(Refused, match="the route names bot@2, and it is gone from MLflow"):
            promote(two_versions, "bot", 2, change)
        with pytest.raises(Refused, match=r"gone from MLflow .*known: bot@1"):
            set_route(two_versions, "bot", {2: 2_000, 1: 8_000}, change)
    assert two_versions.routes.current("bot") == before
    assert set_route(two_versions, "bot", {2: 500, 1: 9_500}, CHANGE).split == {2: 500, 1: 9_500}, "less it may get"
    assert rollback(two_versions, "bot", CHANGE).split == {2: 0, 1: 10_000}
