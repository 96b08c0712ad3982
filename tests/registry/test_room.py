"""A version's files are not fetched onto a disk that has no room for them: said at once, with what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.entities import FileInfo
from mlflow.tracking import MlflowClient

from registry.offered import make_whole, their_run
from tests_support import publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.gates.declared import judge_declared
from tuneloop.registry.nouns import Version
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.versions.bounded import DEEPEST
from tuneloop.registry.versions.room import MARGIN_BYTES, listed_bytes
from tuneloop.registry.versions.sources import MlflowRun


@pytest.fixture
def published(registry: Registry, tmp_path: Path) -> Version:
    return publish_version(registry, tmp_path / "v1")


def leave(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """So much is left on every disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))


def test_what_would_fill_the_disk_is_refused_before_a_byte_of_it_is_fetched(
    registry: Registry, published: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, wanted = tmp_path / "fetched", published.artifact_bytes + MARGIN_BYTES

    def no_download(*_: object, **__: object) -> None:
        raise AssertionError("it is being fetched")

    with monkeypatch.context() as patch:
        leave(patch, wanted - 1)
        patch.setattr("mlflow.artifacts.download_artifacts", no_download)
        said = rf"bot@1: its files, .* take {wanted} bytes, and .*fetched has {wanted - 1}; make room there"
        with pytest.raises(Unavailable, match=said):
            registry.versions.fetch(published, root)
        [check] = judge_declared(registry, published, GatePolicy(signed=True))
        assert (check.verdict, "make room there" in check.detail) == ("inconclusive", True)
    assert list(root.iterdir()) == []
    leave(monkeypatch, wanted)
    folder = registry.versions.fetch(published, root)
    leave(monkeypatch, 0)
    assert registry.versions.fetch(published, root) == folder, "what is there needs no room"


def test_where_the_store_does_not_tell_sizes_the_versions_own_is_what_it_takes(
    registry: Registry, published: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mlflow.tracking.MlflowClient.list_artifacts", lambda *_: [FileInfo("model/a", is_dir=False, file_size=None)]
    )
    leave(monkeypatch, MARGIN_BYTES + published.artifact_bytes - 1)
    with pytest.raises(Unavailable, match=f"take {MARGIN_BYTES + published.artifact_bytes} bytes"):
        registry.versions.fetch(published, tmp_path / "fetched")


def test_a_listing_is_added_up_through_its_folders_and_ends_however_deep_they_are() -> None:
    there: dict[str, list[tuple[str, int | None]]] = {
        "model": [("model/a", 3), ("model/in", None)],
        "model/in": [("model/in/b", 4)],
    }

    def listed(path: str | None) -> Sequence[FileInfo]:
        return [FileInfo(name, is_dir=size is None, file_size=size) for name, size in there[path or ""]]

    assert listed_bytes(listed, "model") == 7
    asked = list[str | None]()

    def endless(path: str | None) -> Sequence[FileInfo]:
        asked.append(path)
        return [FileInfo(f"{path}/in", is_dir=True, file_size=None), FileInfo(f"{path}/a", is_dir=False, file_size=1)]

    assert listed_bytes(endless, "model") == len(asked) == DEEPEST + 1


def test_what_another_machine_keeps_is_not_fetched_to_be_looked_at_where_it_would_fill_the_disk(
    registry: Registry, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, into = make_whole(tmp_path / "whole"), tmp_path / "into"
    into.mkdir()
    source = MlflowRun(their_run(client, whole), "model")
    monkeypatch.setattr("tuneloop.registry.versions.foreign.on_this_machine", lambda _: None)
    wanted = sum(path.stat().st_size for path in whole.iterdir()) + MARGIN_BYTES
    leave(monkeypatch, wanted - 1)
    with pytest.raises(Unavailable, match=f"what it holds, .* take {wanted} bytes, and .* has {wanted - 1}; make room"):
        registry.versions.foreign(source, into)
    assert list(into.iterdir()) == []
    leave(monkeypatch, wanted)
    assert registry.versions.foreign(source, into).folder.is_relative_to(into)
