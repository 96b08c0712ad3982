"""Versions on a real MLflow: a refused publish leaves nothing behind, and what is fetched is what was published."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests_support import publish_version, retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Unavailable, Unreadable
from tuneloop.registry.nouns import Arm
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions import store as versions
from tuneloop.registry.versions.store import VersionDraft

DRAFT = VersionDraft(
    model="bot",
    kind="adapter",
    base="base",
    base_digest="sha256:base",
    template_digest="sha256:template",
    data_digest="sha256:data",
    data_rows=10,
    recipe_digest="sha256:recipe",
    code_commit="0" * 40,
)


def _artifact(registry_home: Path, name: str) -> Path:
    [found] = (registry_home / "artifacts").rglob(name)
    return found


def test_a_version_comes_back_with_everything_that_was_said_of_it(registry: Registry, tmp_path: Path) -> None:
    made = publish_version(
        registry, tmp_path / "v1", target_modules=("q_proj", "v_proj"), metrics={"perplexity.stdlib": 12.5}
    )
    assert (made.name, made.rank, made.target_modules) == ("bot@1", 8, ("q_proj", "v_proj"))
    assert registry.versions.get("bot", 1) == made
    second = publish_version(registry, tmp_path / "v2", parent=1)
    assert registry.versions.all("bot") == [second, made]
    assert registry.versions.models() == ["bot"]


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "state.pkl", "train.py", "noending"])
def test_anything_but_safetensors_and_text_is_refused_and_mlflow_stays_empty(
    registry: Registry, client: MlflowClient, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 8)
    (folder / name).write_bytes(b"cos\nsystem\n")
    _refused(registry, client, folder, match=rf"only safetensors.*remove {name}")


def test_a_link_is_refused_wherever_it_leads(registry: Registry, client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 8)
    (folder / "adapter_config.json").symlink_to("/etc/hostname")
    _refused(registry, client, folder, match=r"adapter_config.json \(a link\)")


def test_an_empty_folder_is_refused(registry: Registry, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _refused(registry, client, tmp_path / "empty", match=r"holds no \*\.safetensors")


def _refused(registry: Registry, client: MlflowClient, folder: Path, *, match: str) -> None:
    run_id = registry.versions.start_run("bot", name="test", params={"lr": 2e-4})
    with pytest.raises(InvalidInput, match=match):
        registry.versions.publish(DRAFT, run_id=run_id, folder=folder)
    assert list(client.search_registered_models()) == []
    assert client.list_artifacts(run_id) == []


def test_fetch_gives_the_published_files_under_their_digest(registry: Registry, tmp_path: Path) -> None:
    made = publish_version(registry, tmp_path / "v1")
    folder = registry.versions.fetch(made, tmp_path / "adapters")
    assert folder.name == made.artifact_digest.removeprefix("sha256:")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "v1").iterdir()
    }
    signature = f"{folder.name}.{made.signed_by}.sig"
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {folder.name, signature}  # nothing half done


def test_one_flipped_byte_in_the_store_is_found_and_nothing_is_handed_over(
    registry: Registry, registry_home: Path, tmp_path: Path
) -> None:
    made = publish_version(registry, tmp_path / "v1")
    stored = _artifact(registry_home, "adapter_model.safetensors")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(bytes(content))
    with pytest.raises(InvalidInput, match=r"fetched files have digest sha256:.*do not serve it"):
        registry.versions.fetch(made, tmp_path / "adapters")
    assert list((tmp_path / "adapters").iterdir()) == []


def test_a_damaged_copy_is_fetched_again_and_a_whole_one_is_not(
    registry: Registry, registry_home: Path, tmp_path: Path
) -> None:
    made = publish_version(registry, tmp_path / "v1")
    folder = registry.versions.fetch(made, tmp_path / "adapters")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-1])
    assert registry.versions.fetch(made, tmp_path / "adapters") == folder
    assert (folder / "adapter_model.safetensors").read_bytes() == whole
    _artifact(registry_home, "adapter_model.safetensors").unlink()
    assert registry.versions.fetch(made, tmp_path / "adapters") == folder  # MLflow is not asked
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InvalidInput, match="holds no"):
        registry.versions.fetch(made, tmp_path / "adapters")


def test_a_retraining_request_makes_one_version(registry: Registry, tmp_path: Path) -> None:
    request = registry.retraining.file(retraining_request(registry.clock()), by="monitor")
    made = publish_version(registry, tmp_path / "v1", request_id=request.id)
    with pytest.raises(Conflict, match=rf"{request.id} already made bot@1"):
        publish_version(registry, tmp_path / "v2", request_id=request.id)
    assert registry.versions.all("bot") == [made]
    assert registry.versions.for_request(request.id) == made
    assert registry.versions.for_request("rt_other") is None


def test_of_two_that_publish_for_one_request_the_later_one_comes_second(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = registry.retraining.file(retraining_request(registry.clock()), by="monitor")
    store = MlflowClient.log_artifacts

    def meanwhile(self: MlflowClient, *arguments: object, **named: object) -> None:
        monkeypatch.undo()
        publish_version(registry, tmp_path / "v1", request_id=request.id)
        store(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_artifacts", meanwhile)
    with pytest.raises(Conflict, match=rf"{request.id} already made bot@1"):
        publish_version(registry, tmp_path / "v2", request_id=request.id)
    assert [version.name for version in registry.versions.all("bot")] == ["bot@1"]


def test_a_run_that_is_not_there_any_more_has_ended(registry: Registry, client: MlflowClient) -> None:
    deleted = registry.versions.start_run("bot", name="test", params={})
    client.delete_run(deleted)
    registry.versions.end_run(deleted, "KILLED")
    registry.versions.end_run("0123456789abcdef0123456789abcdef", "KILLED")
    running = registry.versions.start_run("bot", name="test", params={})
    registry.versions.end_run(running, "KILLED")
    assert client.get_run(running).info.status == "KILLED"


def test_a_runs_metrics_and_files_are_kept(registry: Registry, tmp_path: Path) -> None:
    versions = registry.versions
    run_id = versions.start_run("bot", name="test", params={"lr": 2e-4, "packing": False})
    for step, loss in ((2, 1.5), (0, 3.0), (1, 2.0)):
        versions.log_metrics(run_id, {"loss": loss}, step=step)
    assert versions.metric_history(run_id, "loss") == [(0, 3.0), (1, 2.0), (2, 1.5)]
    assert versions.run_metrics(run_id)["loss"] == 1.5
    (tmp_path / "recipe.yaml").write_text("rank: 8\n")
    versions.log_file(run_id, tmp_path / "recipe.yaml")
    with versions.fetched_file(run_id, "lineage/recipe.yaml") as path:
        assert path.read_text() == "rank: 8\n"
    with versions.fetched_file(run_id, "lineage") as folder:
        assert [file.name for file in folder.iterdir()] == ["recipe.yaml"]
    for missing in ("lineage/data.json", "elsewhere/recipe.yaml", "nothing"):
        with pytest.raises(NotFound, match=f"has no file {missing}"), versions.fetched_file(run_id, missing):
            pass


def test_what_was_fetched_to_be_read_is_gone_afterwards(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = registry.versions.start_run("bot", name="test", params={})
    (tmp_path / "train.jsonl").write_text("what a user said\n")
    registry.versions.log_file(run_id, tmp_path / "train.jsonl")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with registry.versions.fetched_file(run_id, "lineage/train.jsonl") as path:
        assert path.is_relative_to(scratch)
    with pytest.raises(ValueError, match="while it was read"), registry.versions.fetched_file(run_id, "lineage"):
        raise ValueError("while it was read")
    assert list(scratch.iterdir()) == []


def test_a_full_disk_and_a_store_that_is_away_are_not_a_missing_file(
    registry: Registry, registry_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = registry.versions
    run_id = versions.start_run("bot", name="test", params={})
    (tmp_path / "recipe.yaml").write_text("rank: 8\n")
    versions.log_file(run_id, tmp_path / "recipe.yaml")

    def fetched() -> None:
        with versions.fetched_file(run_id, "lineage/recipe.yaml"):
            pass

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copy2", full)
        with pytest.raises(Unavailable, match=r"artifact store answers and .* has room"):
            fetched()
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", full)
        with pytest.raises(Unavailable, match="No space left on device"):
            fetched()
    [kept] = registry_home.rglob("recipe.yaml")
    kept.parents[1].rename(tmp_path / "away")
    with pytest.raises(Unavailable, match=r"lineage/recipe\.yaml cannot be fetched"):
        fetched()


def test_models_and_versions_of_others_in_the_same_mlflow_are_left_alone(
    registry: Registry, client: MlflowClient, tmp_path: Path
) -> None:
    client.create_registered_model("Their Model (old)")
    client.create_registered_model("bot")
    client.create_model_version("bot", source=(tmp_path / "theirs").as_uri())
    made = publish_version(registry, tmp_path / "v2")
    assert made.name == "bot@2"
    assert registry.versions.models() == ["bot"]
    assert registry.versions.all("bot") == [made]
    with pytest.raises(NotFound, match="bot version 1 in MLflow was not published by tuneloop"):
        registry.versions.get("bot", 1)


def test_an_unknown_version_names_those_that_exist(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model named 'bot'; `tuneloop models`"):
        registry.versions.get("bot", 1)
    publish_version(registry, tmp_path / "v1")
    with pytest.raises(NotFound, match="bot@9 does not exist; known: bot@1"):
        registry.versions.get("bot", 9)


@pytest.mark.parametrize("name", ["a' OR 1=1 --", "a`b", ""])
def test_a_name_that_would_speak_to_the_search_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a name"):
        registry.versions.all(name)


def test_aliases_follow_the_route_and_a_challenger_that_is_not_there_is_no_error(
    registry: Registry, tmp_path: Path
) -> None:
    for number in (1, 2):
        publish_version(registry, tmp_path / f"v{number}")
    for arms, aliases in (
        ([Arm(version=1, weight_bp=10_000)], {"champion": 1}),
        ([Arm(version=2, weight_bp=500), Arm(version=1, weight_bp=9_500)], {"champion": 1, "challenger": 2}),
        ([Arm(version=2, weight_bp=0), Arm(version=1, weight_bp=10_000)], {"champion": 1}),
        ([Arm(version=1, weight_bp=0), Arm(version=2, weight_bp=10_000)], {"champion": 2}),
    ):
        expected = len(registry.routes.history("bot"))
        route = registry.routes.write("bot", arms, by="ada", reason="test", expected_revision=expected)
        registry.versions.mirror(route)
        assert registry.versions.aliases("bot") == aliases


def test_an_mlflow_that_is_away_is_one_clear_error(registry_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = RegistrySettings(home=registry_home, mlflow_uri="http://me:s3cret@127.0.0.1:1")
    message = r"^(?!.*s3cret).*127\.0\.0\.1:1.*shows mlflow_uri"
    with Registry.open(settings) as registry, pytest.raises(Unavailable, match=message):
        registry.versions.models()


@pytest.mark.parametrize("uri", ["", "mysql://me:s3cret@h/db", "sqlite:////proc/none/mlflow.db"])
def test_an_mlflow_that_is_damaged_or_of_no_known_kind_is_one_clear_error(tmp_path: Path, uri: str) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database, but a text of some length" * 200)
    message = r"^(?!.*s3cret).*`tuneloop config` shows mlflow_uri"
    settings = RegistrySettings(home=tmp_path, mlflow_uri=uri)
    with Registry.open(settings) as registry, pytest.raises(Unavailable, match=message):
        registry.versions.models()


def test_a_version_whose_tag_is_damaged_is_named_and_hides_no_other(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        publish_version(registry, tmp_path / f"v{number}")
    registry.versions._client.set_model_version_tag("bot", "2", "tuneloop.version", "{")
    assert [version.version for version in registry.versions.all("bot")] == [1]
    assert "bot version 2: its tag tuneloop.version in MLflow cannot be read" in caplog.text
    with pytest.raises(Unreadable, match="bot version 2"):
        registry.versions.get("bot", 2)


def test_versions_are_listed_by_number_whatever_the_page(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 6):
        publish_version(registry, tmp_path / f"v{number}")
    client = MlflowClient(registry.settings.mlflow)
    client.set_model_version_tag("bot", "1", "touched", "last")  # by time it is the newest
    client.delete_model_version_tag("bot", "4", "tuneloop.version")  # not one of ours
    client.set_model_version_tag("bot", "3", "tuneloop.version", "damaged")
    for page in (1, 2, 1_000):
        monkeypatch.setattr(versions, "_PAGE", page)
        assert [found.version for found in registry.versions.all("bot")] == [5, 2, 1]
        assert [found.version for found in registry.versions.all("bot", newest=2)] == [5, 2]
