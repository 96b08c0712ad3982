"""Promotion and splits by hand: nothing unapproved or deleted gets a share, and what is wrong changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests_support import beat_engine, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Refused
from tuneloop.registry.routes.promotion import Change, promote, set_route
from tuneloop.registry.routes.rolling_back import rollback

CHANGE = Change("ada", "test")


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


def test_an_expected_revision_that_is_past_says_who_won(two_versions: Registry) -> None:
    set_route(two_versions, "bot", {2: 1_000, 1: 9_000}, Change("grace", "canary"))
    with pytest.raises(Conflict, match="grace wrote revision 2"):
        set_route(two_versions, "bot", {2: 5_000, 1: 5_000}, CHANGE, expected_revision=1)


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
