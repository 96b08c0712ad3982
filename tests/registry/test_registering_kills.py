"""Registrations that are killed, that fail twice, or that meet: one version, and every beginning has an end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking._model_registry.client import ModelRegistryClient

from registry.mortal import begun, die, ended
from registry.offered import brought, make_base
from serve.engine_support import write_adapter
from tests_support import Clock
from tuneloop.registry import Registry
from tuneloop.registry.database import Database
from tuneloop.registry.errors import Conflict, Unavailable
from tuneloop.registry.exclusive import alone
from tuneloop.registry.rollouts.controller import Controller
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.left_behind import BEGUN, DONE, UNDONE, Begun, note, settle
from tuneloop.registry.versions.sources import Folder

WRITES = (  # each is the last of one registration
    "commit",  # of what begins it
    "commit",  # of what says that the one before has come to nothing
    "create_experiment",
    "create_run",
    "set_terminated",  # of the run before
    "log_param",
    "log_artifacts",
    "log_artifact",
    "create_registered_model",
    "set_registered_model_tag",
    "create_model_version",
    "commit",  # of what says that it is there
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "tiny")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base, seed=0)


def steps(registry: Registry) -> list[str]:
    """What the audit log says of registering, the oldest first."""
    return [e.action for e in reversed(registry.audit.entries(limit=500)) if e.action in {BEGUN, DONE, UNDONE}]


def run_states(client: MlflowClient) -> list[str]:
    experiment = client.get_experiment_by_name("bot")
    assert experiment is not None
    return sorted(run.info.status for run in client.search_runs([experiment.experiment_id]))


class Killed(BaseException):
    """No code of the program handles it."""


@contextmanager
def killed_after(last: str) -> Iterator[None]:
    """Once this is written, to MLflow or (`commit`) the database, nothing is any more: as after a kill -9."""
    writing, dead = Database.writing, list[bool]()

    @contextmanager
    def dying(name: str) -> Iterator[None]:
        if dead:
            raise Killed
        yield
        if name == last:
            dead.append(True)
            raise Killed

    def mortal(client: type, name: str) -> Callable[..., object]:
        write = getattr(client, name)

        def then(*args: object, **kwargs: object) -> object:
            with dying(name):
                return write(*args, **kwargs)

        return then

    @contextmanager
    def committed(database: Database) -> Iterator[object]:
        with dying("commit"), writing(database) as connection:
            yield connection

    with pytest.MonkeyPatch.context() as patch:
        for name in set(WRITES) - {"commit"}:
            client = ModelRegistryClient if hasattr(ModelRegistryClient, name) else MlflowClient
            patch.setattr(client, name, mortal(client, name))
        patch.setattr(Database, "writing", committed)
        with pytest.raises(Killed):
            yield


def test_registrations_killed_between_any_two_writes_make_one_version_and_leave_nothing_open(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path
) -> None:
    """Each finds what the one before has left, and dies at a write of its own."""
    for number, last in enumerate(WRITES):
        with killed_after(last):
            brought(registry, Folder(adapter), base)
        assert len(registry.versions.all("bot")) == (number >= WRITES.index("create_model_version"))
    begun = steps(registry).count(BEGUN)
    completed = brought(registry, Folder(adapter), base)
    assert registry.versions.all("bot") == [completed]
    assert steps(registry) == [*[BEGUN, UNDONE] * (begun - 1), BEGUN, DONE], "none is open, and none is ended twice"
    *failed, finished = run_states(client)
    assert (set(failed), finished) == ({"FAILED"}, "FINISHED")
    with pytest.raises(Conflict, match="bot@1 holds these very files already"):
        brought(registry, Folder(adapter), base)


def test_who_meets_another_is_refused_and_where_their_lock_was_lost_there_are_no_two_versions_either(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another comes while the files are stored: first to the lock, then as where its connection has gone."""
    log_artifacts = MlflowClient.log_artifacts

    def met(mlflow: MlflowClient, *args: str) -> None:
        monkeypatch.undo()
        with Registry.open(registry.settings) as other:
            with pytest.raises(Conflict, match="somebody registers these very files as bot just now"):
                brought(other, Folder(adapter), base)
            assert steps(other) == [BEGUN]
            with monkeypatch.context() as patch:
                patch.setattr("tuneloop.registry.versions.registering.alone", lambda *_: nullcontext(True))
                brought(other, Folder(adapter), base)
        log_artifacts(mlflow, *args)

    monkeypatch.setattr(MlflowClient, "log_artifacts", met)
    with pytest.raises(Conflict, match="bot@1 holds these very files already"):
        brought(registry, Folder(adapter), base)
    assert [version.name for version in registry.versions.all("bot")] == ["bot@1"]
    assert "RUNNING" not in run_states(client)


def test_why_it_failed_is_told_though_its_run_cannot_be_ended_and_the_next_ends_it(
    registry: Registry,
    client: MlflowClient,
    base: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(said: str) -> object:
        def fail(*_: object, **__: object) -> None:
            raise MlflowException(said)

        return fail

    monkeypatch.setattr(ModelRegistryClient, "create_model_version", away("no room"))
    monkeypatch.setattr(MlflowClient, "set_terminated", away("gone since"))
    with pytest.raises(Unavailable, match="no room"):
        brought(registry, Folder(adapter), base)
    assert "gone since" in caplog.text
    assert steps(registry) == [BEGUN, UNDONE]
    assert run_states(client) == ["RUNNING"]
    monkeypatch.undo()
    assert brought(registry, Folder(adapter), base).name == "bot@1"
    assert run_states(client) == ["FAILED", "FINISHED"]
    assert steps(registry) == [BEGUN, UNDONE, BEGUN, DONE]


def test_a_champion_that_was_deleted_in_mlflow_can_be_registered_again(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, tmp_path: Path
) -> None:
    brought(registry, Folder(adapter), base)
    other = brought(registry, Folder(write_adapter(tmp_path / "other", base, seed=1)), base)
    promote(registry, "bot", 1, Change("ada", "now", force=True))
    client.delete_model_version("bot", "1")
    again = brought(registry, Folder(adapter), base)
    assert (again.name, registry.versions.all("bot")) == ("bot@3", [again, other])


def stored(registry: Registry) -> set[str]:
    """The folders of files that MLflow's store holds, by what they are called."""
    return {path.parent.name for path in (registry.settings.home / "artifacts").rglob("*") if path.is_file()}


def registers_until(settings: RegistrySettings, clock: Clock, last: str, adapter: Path, base: Path) -> None:
    """Another process registers an adapter, and is killed with SIGKILL right behind a write of its own."""
    client = ModelRegistryClient if hasattr(ModelRegistryClient, last) else MlflowClient
    write = getattr(client, last)

    def dies(*args: object, **kwargs: object) -> None:
        write(*args, **kwargs)
        die()

    setattr(client, last, dies)
    with Registry.open(settings, clock=clock, upgrade=False) as its_own:
        brought(its_own, Folder(adapter), base)


def test_what_killed_processes_have_left_is_ended_by_the_models_next_registration_and_by_the_controller(
    registries: Registry, clock: Clock, client: MlflowClient, base: Path, adapter: Path, tmp_path: Path
) -> None:
    args = (adapter, base)
    assert ended(begun(registers_until, registries.settings, clock, "log_artifact", *args)) == -signal.SIGKILL
    assert (steps(registries), stored(registries)) == ([BEGUN], {"model", "signature"})
    other = Folder(write_adapter(tmp_path / "other", base, seed=1))
    assert brought(registries, other, base).name == "bot@1"
    assert steps(registries) == [BEGUN, UNDONE, BEGUN, DONE]
    assert run_states(client) == ["FAILED", "FINISHED"]
    [weights] = (registries.settings.home / "artifacts").rglob("adapter_model.safetensors")
    assert weights.read_bytes() == (other.path / weights.name).read_bytes(), "of what came to nothing no file is left"

    assert ended(begun(registers_until, registries.settings, clock, "create_model_version", *args)) == -signal.SIGKILL
    note(registries, "eve", BEGUN, "other", {"digest": "sha256:1"})
    controller = Controller(registries)
    with alone(registries.database, Begun("other", "sha256:1").lock):  # she works at it still
        controller.turn()
        assert steps(registries) == [BEGUN, UNDONE, BEGUN, DONE, BEGUN, BEGUN, DONE]
    completed = registries.audit.entries("bot@2")[0]
    assert (completed.actor, completed.detail["begun_by"]) == ("controller", "ada")
    assert run_states(client) == ["FAILED", "FINISHED", "FINISHED"]
    controller.turn()
    assert [entry.action for entry in registries.audit.entries("other")] == [UNDONE, BEGUN], "she was killed since"


def test_a_lock_is_held_by_one_and_ends_with_its_holder_and_what_was_begun_is_ended_on_either_database(
    registries: Registry,
) -> None:
    with Registry.open(registries.settings) as other:
        with alone(registries.database, "register a") as mine:
            assert mine
            with alone(other.database, "register a") as theirs, alone(other.database, "register b") as different:
                assert (theirs, different) == (False, True)
        with alone(other.database, "register a") as theirs:
            assert theirs
    note(registries, "ada", BEGUN, "bot", {"digest": "sha256:1"})
    note(registries, "ada", BEGUN, "bot", {"digest": "sha256:2"})
    assert settle(registries, "bot", "sha256:1", by="eve") is None
    assert settle(registries, "bot", "sha256:1", by="eve") is None
    newest = registries.audit.entries("bot")[0]
    assert (newest.actor, newest.action, newest.detail["digest"]) == ("eve", UNDONE, "sha256:1")
    assert steps(registries) == [BEGUN, BEGUN, UNDONE]
