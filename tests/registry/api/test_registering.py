"""Registering and signing over HTTP: what lies in MLflow is named, and nothing of the machine it is done on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from registry.api.plane import Plane, running
from registry.offered import make_base, make_whole, their_run
from serve.engine_support import write_adapter
from tests_support import publish_version
from tuneloop.registry import Registry
from tuneloop.registry.access.roles import Role
from tuneloop.registry.api import registering
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.artifacts import base_digest, folder_digest
from tuneloop.registry.versions.foreign import is_own

WHY = {"reason": "test"}
NEW = "/v1/models/new/versions"


def client_of(plane: Plane) -> MlflowClient:
    return MlflowClient(plane.registry.settings.mlflow, plane.registry.settings.mlflow)


def own_run(plane: Plane, folder: Path) -> str:
    """A run in tuneloop's own store that somebody else's training wrote."""
    run_id = plane.registry.versions.start_run("own", name="own", params={})
    client_of(plane).log_artifacts(run_id, str(folder), "out")
    return run_id


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Iterator[Plane]:
    """A control plane over nothing, where no engine of another base lives."""
    home = Path(shutil.copytree(empty_state, tmp_path_factory.mktemp("empty-plane") / "home"))
    with Registry.open(RegistrySettings(home=home)) as registry, running(registry) as started:
        yield started


def test_an_adapter_in_mlflow_becomes_a_version_on_a_base_of_the_control_planes_home(
    empty: Plane, tmp_path: Path
) -> None:
    bases = empty.registry.settings.home / "bases"
    bases.mkdir()
    base = make_base(bases / "tiny")
    run_id = own_run(empty, write_adapter(tmp_path / "adapter", base, seed=0))
    body = {"source": {"run_id": run_id, "path": "out"}, "base": "tiny"} | WHY
    made = empty.ask("POST", NEW, Role.PROMOTER, json=body)
    assert made.status_code == 201, made.text
    said = made.json()
    assert (said["model"], said["version"], said["rank"], said["base"]) == ("new", 1, 8, "tiny")
    assert (said["base_digest"], said["trained_by"]) == (base_digest(base), "token:the-promoter")
    assert empty.get(f"{NEW}/1") == said
    again = empty.ask("POST", NEW, Role.PROMOTER, json=body)
    assert (again.status_code, again.json()["type"]) == (409, "urn:tuneloop:problem:conflict")
    signed = empty.ask("POST", f"{NEW}/1/sign", Role.APPROVER, json=WHY)
    assert (signed.status_code, signed.json()) == (200, said), "the same key signs the same files"
    fetched = empty.registry.versions.fetch(empty.registry.versions.get("new", 1), tmp_path / "fetched")
    assert folder_digest(fetched) == said["artifact_digest"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"source": {"folder": "/etc"}}, "body.source"),
        ({"source": {"run_id": "../../etc"}}, "body.source"),
        ({"source": {"run_id": "r:.x"}}, "MLflow can have no such thing"),
        ({"source": {"run_id": "r", "path": "x"}, "base": "../tiny"}, "body.base"),
        ({"source": {"run_id": "r", "path": "x"}, "base": "/tiny"}, "body.base"),
        ({"source": {"run_id": "r", "path": "x"}, "folder": "/etc"}, "body.folder"),
        ({"source": {"run_id": "RUN", "path": "../out"}}, "leads out of the run"),
        ({"source": {"run_id": "RUN", "path": "/etc"}}, "leads out of the run"),
        ({"source": {"run_id": "THEIRS"}}, "outside .*artifacts, and whoever writes to MLflow could name any folder"),
        *(
            ({"source": {"run_id": "ELSEWHERE"}, "store": f"{scheme}127.0.0.1:1/store"}, "could name any host")
            for scheme in ("http://", "https://", "ftp://", "sftp://", "mlflow-artifacts://", "mlflow-artifacts:/")
        ),
        *(
            ({"source": {"run_id": "ELSEWHERE"}, "store": f"{scheme}://elsewhere/store"}, "could name any host")
            for scheme in ("hdfs", "viewfs", "s3", "gs", "b2", "r2", "oss", "wasbs", "abfss", "dbfs")
        ),
    ],
)
def test_no_path_of_the_machine_and_no_host_is_read_that_a_client_names(
    empty: Plane, tmp_path: Path, body: dict[str, object], told: str
) -> None:
    client = client_of(empty)
    whole = make_whole(tmp_path / "whole")
    body = dict(body)
    store = body.pop("store", None)

    def elsewhere() -> str:
        return str(client.create_run(client.create_experiment(f"e{tmp_path.name}", str(store))).info.run_id)

    runs: dict[str, Callable[[], str]] = {
        "RUN": lambda: own_run(empty, whole),
        "THEIRS": lambda: their_run(client, whole),
        "ELSEWHERE": elsewhere,
    }
    source = dict(body["source"])  # type: ignore[call-overload]
    if make := runs.get(source.get("run_id", "")):
        source["run_id"] = make()
    before = len(empty.registry.audit.entries(limit=500))
    answer = empty.ask("POST", NEW, Role.PROMOTER, json=body | {"source": source} | WHY)
    assert answer.status_code == 422
    assert re.search(told, answer.json()["detail"]), answer.text
    assert len(empty.registry.audit.entries(limit=500)) == before


def test_of_other_machines_only_the_tracking_server_and_its_own_store_are_asked() -> None:
    server = "https://mlflow.example:5000"
    assert is_own("mlflow-artifacts:/3/run/artifacts", server, "mlflow-artifacts:/0")
    assert is_own("mlflow-artifacts:/3/run/artifacts", server, None)
    assert not is_own("mlflow-artifacts:/3/run/artifacts", "sqlite:///mlflow.db", None), "nobody hands them on"
    roots = ("s3://ours/0", "gs://ours/0", "hdfs://name:8020/0", "abfss://c@ours.example/0", "https://ours:1/0")
    for root in roots:
        assert is_own(f"{root.removesuffix('0')}3/run/artifacts", server, root)
        for other in ("s3://theirs/0", "http://ours:1/0", "https://ours:2/0", "https://me@ours:1/0", *roots):
            assert other == root or not is_own(other, server, root)
        for host in ("mlflow.example:5000", "elsewhere", "ours:1"):
            assert not is_own(f"mlflow-artifacts://{host}/0", server, root)
        assert not is_own(root, server, None)


def test_a_base_a_run_or_a_folder_that_is_not_there_is_said_not_to_be(empty: Plane, tmp_path: Path) -> None:
    run_id = own_run(empty, make_whole(tmp_path / "whole"))
    expected: list[tuple[dict[str, object], str]] = [
        ({"source": {"run_id": "r"}, "base": "none"}, "the control plane's home has no base 'none'"),
        ({"source": {"run_id": run_id, "path": "none"}}, "there is no such folder in MLflow"),
        ({"source": {"run_id": run_id, "path": "ö" * 200}}, "there is no such folder in MLflow"),
        ({"source": {"run_id": "0" * 32}}, "not found"),
        ({"source": {"model": "a model of theirs", "number": 1}}, "MLflow: "),
    ]
    for body, told in expected:
        answer = empty.ask("POST", NEW, Role.PROMOTER, json=body | WHY)
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:tuneloop:problem:not-found"), answer.text
        assert told in answer.json()["detail"]


def test_as_many_as_may_are_registered_at_a_time_and_routes_are_changed_meanwhile(empty: Plane) -> None:
    for _ in range(registering.AT_ONCE):
        assert registering._places.acquire(blocking=False)
    try:
        for path, body in ((NEW, {"source": {"run_id": "r"}}), ("/v1/models/bot/versions/1/sign", {})):
            busy = empty.ask("POST", path, json=body | WHY)
            assert (busy.status_code, busy.headers["retry-after"]) == (429, "5")
        other = empty.ask("POST", "/v1/models/bot/rollback", json=WHY)
        assert other.status_code == 404, other.text
    finally:
        for _ in range(registering.AT_ONCE):
            registering._places.release()


def test_files_that_are_not_those_that_were_published_are_not_signed(empty: Plane, tmp_path: Path) -> None:
    made = publish_version(empty.registry, tmp_path / "v1", model="other")
    [stored] = (empty.registry.settings.home / "artifacts").rglob(f"{made.run_id}/artifacts/model/adapter_config.json")
    stored.write_text("{}")
    refused = empty.ask("POST", "/v1/models/other/versions/1/sign", Role.APPROVER, json=WHY)
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:tuneloop:problem:invalid")
    assert "other@1: fetched files have digest" in refused.json()["detail"]
