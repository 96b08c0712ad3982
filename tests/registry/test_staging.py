"""What engines must hold before a version gets its share: refused before it is written, loaded before it is given."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests_support import beat_engine, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Refused, Unavailable
from tuneloop.registry.nouns import Arm, Version, version_name
from tuneloop.registry.routes import promotion, staging
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.settings import RegistrySettings

CHANGE = Change("ada", "test")


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
    two_versions.versions.sign(two_versions.versions.get("bot", 3))
    beat_engine(two_versions, "bot@1", "bot@2", made.name)
    assert promote(two_versions, "bot", 3, CHANGE).champion == 3


def test_engines_that_serve_their_base_alone_get_no_adapter(two_versions: Registry, tmp_path: Path) -> None:
    publish_version(two_versions, tmp_path / "v3")
    two_versions.gates.approve("bot", 3, by="ada", reason="test")
    two_versions.fleet.forget_engine("e1")
    beat_engine(two_versions, id="alone", max_loras=0)
    with pytest.raises(Refused, match="every live engine serves its base alone"):
        promote(two_versions, "bot", 3, CHANGE)


def test_whole_weights_get_a_share_once_an_engine_was_started_for_them(two_versions: Registry, tmp_path: Path) -> None:
    publish_version(two_versions, tmp_path / "v3", kind="full")
    two_versions.gates.approve("bot", 3, by="ada", reason="test")
    beat_engine(two_versions, "bot@1")
    with pytest.raises(Refused, match=r"bot@3 is whole weights.*`tuneloop engine --version bot@3`"):
        promote(two_versions, "bot", 3, CHANGE)
    assert two_versions.routes.current("bot").revision == 1
    beat_engine(two_versions, "bot@3", id="whole", max_loras=0)
    assert promote(two_versions, "bot", 3, CHANGE).champion == 3


def test_with_mlflow_away_what_is_not_loaded_yet_is_refused_within_the_time(
    two_versions: Registry, registry_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "LOOKUP_TIMEOUT_S", 0.5)
    with Registry.open(RegistrySettings(home=registry_home, mlflow_uri="http://127.0.0.1:1")) as cut_off:
        with pytest.raises(Unavailable, match=r"MLflow at http://127\.0\.0\.1:1 did not answer within 0\.5 s"):
            promote(cut_off, "bot", 2, CHANGE)
        assert cut_off.routes.current("bot").revision == 1


def test_a_version_gets_its_share_only_once_an_engine_serves_it(two_versions: Registry) -> None:
    beat_engine(two_versions, "bot@1")
    done: list[dict[int, int]] = []
    changing = threading.Thread(target=lambda: done.append(promote(two_versions, "bot", 2, CHANGE).split))
    changing.start()
    deadline = time.monotonic() + 60
    while two_versions.routes.current("bot").revision == 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert two_versions.routes.current("bot").split == {2: 0, 1: 10_000}  # staged: engines load it, nobody gets it
    assert not done
    beat_engine(two_versions, "bot@1", "bot@2")
    changing.join(timeout=60)
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
        deadline = time.monotonic() + 60
        while two_versions.routes.current("bot").revision == 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert two_versions.routes.current("bot").split == {3: 0, 2: 10_000}
        beat_engine(two_versions, "bot@2", "bot@3", max_loras=3)
        assert changing.result(timeout=60).split == {2: 0, 3: 10_000}


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
    beat_engine(two_versions, "bot@1", "old@1", max_loras=3, pins=("old@1",))
    with pytest.raises(Refused, match=r"the routes and its pins \(old@1\) would name 3"):
        set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, CHANGE)
    publish_version(two_versions, tmp_path / "v3", rank=64)
    beat_engine(two_versions, "bot@1", "bot@2")
    with pytest.raises(Refused, match=r"rank 64.*--max-lora-rank 64"):
        promote(two_versions, "bot", 3, Change("ada", "test", force=True))
    assert two_versions.routes.current("bot").revision == 1
