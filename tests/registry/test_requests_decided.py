"""Whoever gives a version everything, or takes its share, has decided about the retraining that made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests_support import beat_engine, beat_gateway, publish_version, retraining_request
from tuneloop.registry import Registry, audit
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import RetrainingState
from tuneloop.registry.routes import promotion
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback
from tuneloop.registry.settings import RegistrySettings

CHANGE = Change("ada", "test")


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
