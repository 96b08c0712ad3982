"""Fixtures every package's tests share: a registry on a real database, and the small real base model.

PostgreSQL runs in a cluster of its own, made once a session.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from postgres_cluster import PostgresCluster
from tests_support import Clock
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings

# Machines differ in speed, and what fails here fails for everybody: no deadlines, and the same examples every time.
settings.register_profile("tuneloop", deadline=None, derandomize=True)
# Except in a fuzz, which says by which seed the same can be seen again.
settings.register_profile(
    "fuzz",
    deadline=None,
    derandomize=False,
    database=None,
    max_examples=int(os.environ.get("EXAMPLES", "100")),
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("tuneloop")
# A thread that still asks an MLflow which its test left for dead would draw from `random`, which Hypothesis watches.
os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"] = "0"
ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def postgres_binaries() -> Path | None:
    """The folder with initdb and postgres: on the PATH, or where Debian keeps it."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.fail("PostgreSQL is not installed; `make setup` installs it (apt-get install postgresql)")
    cluster = PostgresCluster(binaries)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def empty_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder with an empty registry and MLflow at their newest schemas: migrating takes seconds.

    To check a schema MLflow reads all its migrations again for each database, a twentieth of a second; here once.
    """
    home = tmp_path_factory.mktemp("empty")
    with Registry.open(RegistrySettings(home=home)) as registry:
        assert registry.versions.models() == []
    from mlflow.store.db import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_get_latest_schema_revision", cache(utils._get_latest_schema_revision))
        yield home


@pytest.fixture(scope="session")
def empty_mlflow(empty_state: Path) -> Path:
    """The MLflow file of such a folder."""
    return empty_state / "mlflow.db"


@pytest.fixture
def registry_home(tmp_path: Path, empty_state: Path) -> Path:
    """A state folder of its own, with an empty registry and an empty MLflow in it."""
    return Path(shutil.copytree(empty_state, tmp_path / "home"))


@pytest.fixture
def registry(registry_home: Path) -> Iterator[Registry]:
    """An open registry on SQLite in a folder of its own, on the real clock."""
    with Registry.open(RegistrySettings(home=registry_home)) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def registries(request: pytest.FixtureRequest, registry_home: Path, clock: Clock) -> Iterator[Registry]:
    """The same registry on both databases, on a clock the test moves."""
    with ExitStack() as stack:
        url = ""
        if request.param == "postgresql":
            url = stack.enter_context(request.getfixturevalue("postgres").lent_database())
        settings = RegistrySettings(home=registry_home, database_url=url)
        yield stack.enter_context(Registry.open(settings, clock=clock))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once into .cache/ by the verb users call."""
    folder = CACHE / "bases" / "smollm2-135m-instruct"
    if not folder.is_dir():
        command = [sys.executable, "-m", "tuneloop.cli", "base", "examples/python-helper/recipe.yaml", "--json"]
        environment = os.environ | {"TUNELOOP_HOME": str(CACHE)}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
        assert json.loads(done.stdout)["folder"] == str(folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a test may look for a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
