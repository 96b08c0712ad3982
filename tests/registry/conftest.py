"""The registry's own fixtures: its verbs, on a registry of the test's own or on one that several share."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from registry.verbs import Verb, let_live, verb_at
from registry.world import Users, World, publish, set_up
from tests_support import beat_engine
from tuneloop.registry import Registry
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.settings import RegistrySettings


@pytest.fixture
def verb(registry_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verb:
    """Runs `tuneloop …` on this test's registry, in this process: (exit code, stdout, stderr)."""
    return verb_at(registry_home, monkeypatch, capfd)


@pytest.fixture
def client(registry_home: Path) -> MlflowClient:
    """MLflow as somebody else sees it, beside ours."""
    uri = RegistrySettings(home=registry_home).mlflow
    return MlflowClient(uri, uri)


@pytest.fixture
def lived_in(registry: Registry, tmp_path: Path) -> Registry:
    """This test's own registry, in which something has happened."""
    return let_live(registry, tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Registry]:
    """One for all the tests that change nothing."""
    home = tmp_path_factory.mktemp("shared")
    shutil.copy(empty_mlflow, home)
    with Registry.open(RegistrySettings(home=home)) as opened:
        yield let_live(opened, home)


@pytest.fixture
def verb_there(shared: Registry, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verb:
    """Runs `tuneloop …` on the shared registry."""
    return verb_at(shared.settings.home, monkeypatch, capfd)


@pytest.fixture(scope="session")
def published_mlflow(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """An MLflow that holds two versions of `bot`: publishing takes seconds, copying the file none."""
    home = tmp_path_factory.mktemp("published")
    shutil.copy(empty_mlflow, home)
    with Registry.open(RegistrySettings(home=home)) as opened:
        publish(opened, home)
    return home / "mlflow.db"


@pytest.fixture
def published_home(tmp_path: Path, empty_state: Path, published_mlflow: Path) -> Path:
    """A state folder of its own, with those versions in its MLflow; tests may name it their `registry_home`."""
    home = Path(shutil.copytree(empty_state, tmp_path / "published"))
    shutil.copy(published_mlflow, home)
    return home


@pytest.fixture
def two_versions(registry: Registry, published_mlflow: Path) -> Registry:
    """`bot@1` serves everything on a live engine; `bot@2` is approved and loaded too."""
    shutil.copy(published_mlflow, registry.settings.home)
    for number in (1, 2):
        registry.gates.approve("bot", number, by="ada", reason="test")
    promote(registry, "bot", 1, Change("ada", "test"))
    beat_engine(registry, "bot@1", "bot@2")
    return registry


@pytest.fixture
def users(registries: Registry) -> Users:
    """`bot@1` serves and `bot@2` may, on both databases; users find it better."""
    set_up(registries)
    return Users(registries, {1: 0.5, 2: 0.8})


@pytest.fixture
def world(registry: Registry, published_mlflow: Path) -> Iterator[World]:
    """`bot@1` serves everything, `bot@2` may; an engine and a gateway live, and nobody asks yet."""
    shutil.copy(published_mlflow, registry.settings.home)
    set_up(registry)
    running = World(registry)
    running.start()
    deadline = time.monotonic() + 60
    while not registry.fleet.gateways() and time.monotonic() < deadline:
        time.sleep(0.02)
    yield running
    running.close()
