"""An adapter from elsewhere becomes a version whole, or leaves nothing behind: neither run, model nor audit record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry.offered import brought, change_json, left, make_base, their_run, their_version, write_tokenizer
from registry.verbs import Verb
from serve.engine_support import write_adapter
from tests_support import beat_engine
from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, TuneloopError, Unavailable
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.versions.adapters import SERVED_MODULES
from tuneloop.registry.versions.artifacts import base_digest, folder_digest, template_digest, tokenizer_digest
from tuneloop.registry.versions.sources import Folder, MlflowRun, MlflowVersion, Source


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "tiny")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base, seed=0)


def test_a_folder_becomes_a_version_as_a_trainings_result_does(registry: Registry, base: Path, adapter: Path) -> None:
    made = brought(registry, Folder(adapter), base)
    assert (made.name, made.kind, made.base, made.rank) == ("bot@1", "adapter", "tiny", 8)
    assert made.target_modules == tuple(sorted(SERVED_MODULES))
    assert (made.base_digest, made.template_digest) == (base_digest(base), template_digest(base))
    assert (made.data_digest, made.code_commit, made.trained_by) == ("unknown", "unknown", "ada")
    assert made.artifact_digest == folder_digest(adapter)
    assert registry.versions.all("bot") == [made]
    fetched = registry.versions.fetch(made, registry.settings.home / "adapters")  # verifies digest and signature
    assert folder_digest(fetched) == folder_digest(adapter)
    assert [entry.subject for entry in registry.audit.entries(action="version.register")] == ["bot"]
    [entry] = registry.audit.entries("bot@1")
    assert (entry.action, entry.actor, entry.detail["digest"]) == ("version.registered", "ada", made.artifact_digest)
    with pytest.raises(TuneloopError, match="bot@1 is not approved"):
        promote(registry, "bot", 1, Change("bob", "now"))


def test_a_run_and_a_version_of_somebody_else_become_versions_with_what_mlflow_knows_of_them(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, tmp_path: Path
) -> None:
    first = brought(registry, MlflowRun(their_run(client, adapter)), base)
    assert (first.name, first.code_commit, first.metrics) == ("bot@1", "c0ffee", {"loss": 0.25})
    run_id = their_run(client, write_adapter(tmp_path / "second", base, seed=1), path="out/peft")
    source = their_version(client, run_id, f"runs:/{run_id}/out")
    second = brought(registry, MlflowVersion(source.model, source.number, "peft"), base)
    assert (second.name, second.code_commit) == ("bot@2", "c0ffee")
    assert second.artifact_digest == folder_digest(tmp_path / "second")


def a_pickle(folder: Path, _base: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def a_link(folder: Path, base: Path) -> None:
    (folder / "README.md").symlink_to(base / "config.json")


def a_linked_folder(folder: Path, base: Path) -> None:
    (folder / "extra").symlink_to(base)


def no_configuration(folder: Path, _base: Path) -> None:
    (folder / "adapter_config.json").unlink()


def no_weights(folder: Path, _base: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def cut_short(folder: Path, _base: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def a_rank_of_600(folder: Path, base: Path) -> None:
    write_adapter(folder, base, seed=0, rank=600)


def of_a_wider_base(folder: Path, base: Path) -> None:
    write_adapter(folder, make_base(base.parent / "wider", width=9), seed=0)


def a_template_of_its_own(folder: Path, _base: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ other }}")


def a_tokenizer_of_its_own(folder: Path, base: Path) -> None:
    change_json(write_tokenizer(base), added_tokens=[])
    change_json(write_tokenizer(folder), added_tokens=[{"id": 3, "content": "<x>"}])


def a_tokenizer_that_the_base_has_not(folder: Path, _base: Path) -> None:
    write_tokenizer(folder)


def a_damaged_tokenizer(folder: Path, _base: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[")


REFUSED: list[tuple[Callable[[Path, Path], None], str]] = [
    (a_pickle, r"only safetensors, JSON and text are published; remove adapter_model.bin \(.bin\)"),
    (a_link, r"remove README.md \(a link\)"),
    (a_linked_folder, r"remove extra \(a link\)"),
    (no_configuration, "adapter_config.json cannot be read"),
    (no_weights, "holds no"),
    (cut_short, "is cut short"),
    (a_rank_of_600, "rank 600 is above 512, the most that vLLM serves"),
    (of_a_wider_base, "belongs to another base"),
    (a_template_of_its_own, "it was saved with the chat template"),
    (a_tokenizer_of_its_own, "its tokenizer is not that of tiny, which engines ask it with"),
    (a_tokenizer_that_the_base_has_not, "its tokenizer is not that of tiny"),
    (a_damaged_tokenizer, "tokenizer_config.json cannot be read"),
]


@pytest.mark.parametrize(("spoil", "told"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_a_folder_that_cannot_be_served_is_refused_and_leaves_nothing_behind(
    registry: Registry,
    client: MlflowClient,
    base: Path,
    adapter: Path,
    spoil: Callable[[Path, Path], None],
    told: str,
) -> None:
    spoil(adapter, base)
    before = left(registry, client)
    with pytest.raises(InvalidInput, match=told):
        brought(registry, Folder(adapter), base)
    assert left(registry, client) == before
    assert not (registry.settings.home / "artifacts").exists()


def test_an_adapter_may_bring_its_bases_tokenizer_saved_anew(registry: Registry, base: Path, adapter: Path) -> None:
    merges = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    write_tokenizer(base)
    told = {"model": merges, "added_tokens": [], "padding": {"direction": "Left"}, "version": "1.0"}
    (adapter / "tokenizer.json").write_text(json.dumps(told, indent=2))  # pairs, padding and layout as newer ones write
    made = brought(registry, Folder(adapter), base)
    assert made.tokenizer_digest == tokenizer_digest(base) is not None


def test_a_base_or_template_other_than_what_serves_the_model_is_refused(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, tmp_path: Path
) -> None:
    brought(registry, Folder(adapter), base)
    before = left(registry, client)
    wider = make_base(tmp_path / "wider", width=9)
    other = write_adapter(tmp_path / "other", wider, seed=1)
    with pytest.raises(InvalidInput, match=r"its base wider is sha256:.*, and bot@1 has sha256:"):
        brought(registry, Folder(other), wider)
    retold = make_base(tmp_path / "retold", template="{{ another }}")
    with pytest.raises(InvalidInput, match=r"the chat template of retold is sha256:.*, and bot@1 has sha256:"):
        brought(registry, Folder(write_adapter(tmp_path / "third", retold, seed=2)), retold)
    beat_engine(registry, base_digest=base_digest(wider), template_digest=template_digest(wider))
    with pytest.raises(InvalidInput, match="engine e1 has sha256:"):
        brought(registry, Folder(adapter), base, model="another")
    assert left(registry, client) == before


def test_a_rank_above_that_of_every_live_engine_of_its_base_is_refused(
    registry: Registry, client: MlflowClient, base: Path, tmp_path: Path
) -> None:
    theirs = {"base_digest": base_digest(base), "template_digest": template_digest(base)}
    beat_engine(registry, **theirs, max_lora_rank=16)
    adapter = write_adapter(tmp_path / "adapter", base, seed=0, rank=32)
    before = left(registry, client)
    with pytest.raises(InvalidInput, match="start the engine with --max-lora-rank 32"):
        brought(registry, Folder(adapter), base)
    assert left(registry, client) == before
    beat_engine(registry, **theirs, id="e2", max_lora_rank=32)
    assert brought(registry, Folder(adapter), base).rank == 32


@pytest.mark.parametrize("path", ["../model", "model/../../secret", "/etc", "a\\..\\b"])
def test_a_path_that_leads_out_of_the_run_is_refused(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, path: str
) -> None:
    run_id = their_run(client, adapter)
    before = left(registry, client)
    with pytest.raises(InvalidInput, match="leads out of the run"):
        brought(registry, MlflowRun(run_id, path), base)
    assert left(registry, client) == before


def test_a_link_in_the_artifact_store_is_refused_and_what_it_leads_to_is_not_read(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, tmp_path: Path
) -> None:
    run_id = their_run(client, adapter)
    stored = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    (stored / "model" / "notes.json").symlink_to(base / "config.json")
    shutil.copytree(adapter, tmp_path / "outside")
    (stored / "out").symlink_to(tmp_path / "outside")
    before = left(registry, client)
    with pytest.raises(InvalidInput, match=r"remove notes.json \(a link\)"):
        brought(registry, MlflowRun(run_id), base)
    with pytest.raises(InvalidInput, match="outside the run that it names"):
        brought(registry, MlflowRun(run_id, "out"), base)
    assert left(registry, client) == before


def test_a_version_of_mlflow_whose_files_lie_outside_its_run_is_refused(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, tmp_path: Path
) -> None:
    outside = write_adapter(tmp_path / "outside", base, seed=3)
    source = their_version(client, their_run(client, adapter), f"file://{outside}")
    before = left(registry, client)
    with pytest.raises(InvalidInput, match="outside the run that it names"):
        brought(registry, source, base)
    assert left(registry, client) == before


def test_what_is_not_there_and_what_is_there_already_are_told(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, tmp_path: Path
) -> None:
    run_id = their_run(client, adapter)
    brought(registry, Folder(adapter), base)
    before = left(registry, client)
    expected: list[tuple[Source, type[TuneloopError], str]] = [
        (Folder(adapter), Conflict, "bot@1 holds these very files already"),
        (Folder(tmp_path / "nowhere"), InvalidInput, "there is no folder"),
        (MlflowRun(run_id, "nothing"), NotFound, "there is no such folder in MLflow"),
        (MlflowRun("0" * 32), NotFound, "not found"),
        (MlflowVersion("theirs", 9), NotFound, "MLflow: "),
        (MlflowVersion("bot", 1), InvalidInput, "is tuneloop's own bot@1 already"),
    ]
    for source, kind, told in expected:
        with pytest.raises(kind, match=told):
            brought(registry, source, base)
    with pytest.raises(InvalidInput, match="'Bot' cannot be registered"):
        brought(registry, Folder(write_adapter(tmp_path / "new", base, seed=4)), base, model="Bot")
    assert left(registry, client) == before


def test_mlflow_failing_midway_leaves_a_failed_run_and_no_version(
    registry: Registry, client: MlflowClient, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise MlflowException("gone")

    monkeypatch.setattr(registry.versions._client._get_registry_client(), "create_model_version", away)
    with pytest.raises(Unavailable, match="gone"):
        brought(registry, Folder(adapter), base)
    assert registry.versions.all("bot") == []
    experiment = client.get_experiment_by_name("bot")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]
    assert registry.audit.entries("bot@1") == []
    monkeypatch.undo()
    assert brought(registry, Folder(adapter), base).name == "bot@1"


def test_the_verb_says_what_comes_next_and_wants_one_source(verb: Verb, base: Path, adapter: Path) -> None:
    said = ("--base", str(base), "--by", "ada", "--reason", "test")
    code, out, _ = verb("register", "bot", "--folder", str(adapter), *said)
    assert code == 0
    assert "bot@1 is registered" in out
    assert "next: `tuneloop approve bot@1 --by SOMEBODY" in out
    assert json.loads(verb("show", "bot@1", "--json")[1])["version"]["rank"] == 8
    for wrong, told in (
        ([], "one of --folder, --mlflow and --run"),
        (["--folder", str(adapter), "--run", "r"], "one of --folder, --mlflow and --run"),
        (["--folder", str(adapter), "--path", "x"], "--path goes with --mlflow and --run"),
        (["--mlflow", "bot"], "write NAME/VERSION"),
    ):
        code, _, err = verb("register", "bot", *wrong, *said)
        assert (code, told in err) == (2, True), err
