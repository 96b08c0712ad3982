"""A control plane over a registry in which everything there is to list has happened once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.api.plane import Plane, following, let_experiment, let_silence, running
from registry.verbs import let_live
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings


@pytest.fixture(scope="module")
def lived_in_home(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A home in which something has happened; copied, never written to."""
    home = tmp_path_factory.mktemp("lived")
    shutil.copy(empty_mlflow, home)
    with Registry.open(RegistrySettings(home=home)) as registry:
        let_live(registry, home)
        let_experiment(registry)
        let_silence(registry)
    return home


@pytest.fixture
def plane(lived_in_home: Path, tmp_path: Path) -> Iterator[Plane]:
    """This test's own control plane."""
    with _over_a_copy(lived_in_home, tmp_path / "home") as started:
        yield started


@pytest.fixture(scope="module")
def shared_plane(lived_in_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """One for all of a module's tests that do not mind each other."""
    with _over_a_copy(lived_in_home, tmp_path_factory.mktemp("shared") / "home") as started:
        yield started


@contextmanager
def _over_a_copy(lived_in: Path, home: Path) -> Iterator[Plane]:
    shutil.copytree(lived_in, home)
    with Registry.open(RegistrySettings(home=home)) as registry, following(registry), running(registry) as started:
        yield started
