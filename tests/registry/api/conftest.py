"""A control plane over a registry in which everything there is to list has happened once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from postgres_cluster import PostgresCluster
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
        _let_all_happen(registry)
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


@pytest.fixture(scope="module")
def plane_on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path, postgres: PostgresCluster
) -> Iterator[Plane]:
    """Such a one, with PostgreSQL behind it."""
    home = tmp_path_factory.mktemp("postgresql")
    shutil.copy(empty_mlflow, home)
    with postgres.lent_database() as url, _running(RegistrySettings(home=home, database_url=url)) as started:
        yield started


@contextmanager
def _over_a_copy(lived_in: Path, home: Path) -> Iterator[Plane]:
    shutil.copytree(lived_in, home)
    with _running(RegistrySettings(home=home)) as started:
        yield started


@contextmanager
def _running(settings: RegistrySettings) -> Iterator[Plane]:
    with Registry.open(settings) as registry:
        if not registry.routes.current_all():
            _let_all_happen(registry)
        with following(registry), running(registry) as started:
            yield started


def _let_all_happen(registry: Registry) -> None:
    let_live(registry, registry.settings.home)
    let_experiment(registry)
    let_silence(registry)
