"""Keys with a version of their own, and keys that are held out: they stay over other changes of the route."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests_support import beat_engine, publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput
from tuneloop.registry.routes.assignment import key_hash, overridden
from tuneloop.registry.routes.promotion import Change, hold_out, override, set_route
from tuneloop.registry.routes.rolling_back import rollback

CHANGE = Change("ada", "test")


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
