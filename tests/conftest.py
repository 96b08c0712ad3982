"""Fixtures every package's tests share: a registry on a real database, and the small real base model.

PostgreSQL runs in a cluster of its own, made once a session in a temporary folder; as root it runs as the `postgres`
user, because the server refuses root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests_support import Clock, free_port
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings

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


class PostgresCluster:
    """A throw-away PostgreSQL server on a free port; each test gets a database of its own."""

    def __init__(self, binaries: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tuneloop-pg-", dir="/tmp"))
        self.port = free_port()
        self._as = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as:
            shutil.chown(self.folder, "postgres")
        self._binaries = binaries
        self._run("initdb", "-D", self.folder / "data", "-U", "tuneloop", "-A", "trust", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-w", "-o", options, "start")
        self._admin = psycopg.connect(
            host="127.0.0.1", port=self.port, user="tuneloop", dbname="postgres", autocommit=True
        )
        self._made = 0
        self._migrated: str | None = None

    def new_database(self) -> str:
        """The URL of a fresh, empty database."""
        return self._url(self._new("template1"))

    def migrated_database(self) -> str:
        """The URL of a fresh database at the newest schema: a copy of one that was migrated, once a session."""
        if self._migrated is None:
            migrated = self._new("template1")
            Registry.open(RegistrySettings(home=self.folder, database_url=self._url(migrated))).close()
            self._migrated = migrated
        return self._url(self._new(self._migrated))

    def _new(self, template: str) -> str:
        self._made += 1
        name = f"test{self._made}"
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://tuneloop@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        self._admin.close()
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: object) -> None:
        command = [*self._as, str(self._binaries / program), *map(str, arguments)]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        if done.returncode != 0:
            log = self.folder / "log"
            raise RuntimeError(f"{program}: {done.stderr}{log.read_text() if log.exists() else ''}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.fail("PostgreSQL is not installed; `make setup` installs it (apt-get install postgresql)")
    cluster = PostgresCluster(binaries)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def empty_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with an empty registry and MLflow at their newest schemas: migrating takes seconds."""
    home = tmp_path_factory.mktemp("empty")
    with Registry.open(RegistrySettings(home=home)) as registry:
        assert registry.versions.models() == []
    return home


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
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres").migrated_database()
    with Registry.open(RegistrySettings(home=registry_home, database_url=url), clock=clock) as opened:
        yield opened


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
