"""Whole weights from elsewhere become a version whole, or leave nothing behind; and nobody swaps them on the way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from safetensors.numpy import save_file

from registry.offered import brought, change_json, left, make_whole, their_run
from registry.verbs import Verb
from serve.engine_support import write_adapter
from tests_support import beat_engine
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, TuneloopError
from tuneloop.registry.nouns import utc_now
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.versions.artifacts import (
    base_digest,
    check_publishable,
    folder_digest,
    template_digest,
    tokenizer_digest,
)
from tuneloop.registry.versions.private import private_folder
from tuneloop.registry.versions.sources import Folder, MlflowRun

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Iterator[Registry]:
    """One for everything that is refused: each finds it as it was."""
    home = Path(shutil.copytree(empty_state, tmp_path_factory.mktemp("untouched") / "home"))
    with Registry.open(RegistrySettings(home=home)) as opened:
        yield opened


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_whole(tmp_path / "tiny", seed=1)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_whole(tmp_path / "tuned", seed=2, shards=2)


def test_whole_weights_become_a_version_that_is_signed_and_fetched_like_any_other(
    registry: Registry, base: Path, whole: Path
) -> None:
    made = brought(registry, Folder(whole), base)
    assert (made.name, made.kind, made.base, made.rank, made.target_modules) == ("bot@1", "full", "tiny", None, ())
    assert (made.base_digest, made.template_digest) == (base_digest(base), template_digest(base))
    assert made.tokenizer_digest == tokenizer_digest(base) is not None
    assert made.artifact_bytes == sum(path.stat().st_size for path in whole.iterdir())
    fetched = registry.versions.fetch(made, registry.settings.home / "adapters")
    assert folder_digest(fetched) == folder_digest(whole) == made.artifact_digest
    assert list((registry.settings.home / "registering").iterdir()) == [], "no copy is left"


def test_without_a_base_they_stand_for_themselves(registry: Registry, client: MlflowClient, whole: Path) -> None:
    made = brought(registry, MlflowRun(their_run(client, whole)), None)
    assert (made.kind, made.base, made.base_digest, made.code_commit) == ("full", "unknown", "unknown", "c0ffee")
    assert made.template_digest == template_digest(whole)


def test_whole_weights_are_shown_listed_and_compared_for_what_they_are_and_routed_to_engines_of_their_own(
    registry: Registry, verb: Verb, base: Path, whole: Path, tmp_path: Path
) -> None:
    said = ("--by", "ada", "--reason", "test")
    assert verb("register", "bot", "--folder", str(whole), "--base", str(base), *said)[0] == 0
    assert verb("register", "bot", "--folder", str(make_whole(tmp_path / "second", seed=3)), *said)[0] == 0
    shown = [line.split() for line in verb("show", "bot@1")[1].splitlines()]
    assert ["kind", "full"] in shown
    assert ["data", "unknown"] in shown, "nobody said how many rows there were"
    assert ["tokenizer", tokenizer_digest(whole)] in shown
    assert verb("versions", "bot")[1].count(" full ") == 2
    compared = verb("compare", "bot@1", "bot@2")[1].splitlines()
    assert compared[1].split() == ["kind", "full", "full"]
    assert ["base", "tiny", "unknown"] in [line.split() for line in compared]
    assert ["data_rows", "unknown", "unknown"] in [line.split() for line in compared]
    registry.gates.approve("bot", 1, by="bob", reason="looked at")
    beat_engine(registry, "other@1")
    with pytest.raises(TuneloopError, match=r"bot@1 is whole weights.*`tuneloop engine --version bot@1`"):
        promote(registry, "bot", 1, Change("bob", "now"))
    assert verb("register", "bot", "--folder", str(write_adapter(tmp_path / "a", base, seed=0)), *said)[0] == 2


def an_index_that_leads_out(folder: Path, _base: Path) -> None:
    shutil.move(folder / FIRST, folder.parent / FIRST)
    reindex(folder, f"../{FIRST}")


def an_absolute_index(folder: Path, _base: Path) -> None:
    reindex(folder, str(folder / FIRST))


def a_hidden_shard(folder: Path, _base: Path) -> None:
    reindex(folder, ".x.safetensors")


def a_missing_shard(folder: Path, _base: Path) -> None:
    (folder / FIRST).unlink()


def an_extra_shard(folder: Path, _base: Path) -> None:
    shutil.copy(folder / FIRST, folder / "extra.safetensors")


def a_shard_further_down(folder: Path, _base: Path) -> None:
    (folder / "more").mkdir()
    shutil.copy(folder / FIRST, folder / "more")


def no_index(folder: Path, _base: Path) -> None:
    (folder / INDEX).unlink()


def a_tensor_that_is_elsewhere(folder: Path, _base: Path) -> None:
    named = json.loads((folder / INDEX).read_text())["weight_map"]
    change_json(folder / INDEX, weight_map=dict(zip(named, reversed(named.values()), strict=True)))


def a_tensor_that_is_not_named(folder: Path, _base: Path) -> None:
    named = json.loads((folder / INDEX).read_text())["weight_map"]
    first, *others = (name for name, shard in named.items() if shard == FIRST)
    assert others, "the shard is named all the same"
    change_json(folder / INDEX, weight_map={name: shard for name, shard in named.items() if name != first})


def an_index_of_nothing(folder: Path, _base: Path) -> None:
    change_json(folder / INDEX, weight_map=[])


def a_shard_cut_short(folder: Path, _base: Path) -> None:
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-4])


def a_pickle(folder: Path, _base: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def code_of_its_own(folder: Path, _base: Path) -> None:
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})


def quantised(folder: Path, _base: Path) -> None:
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq"})


def no_architecture(folder: Path, _base: Path) -> None:
    change_json(folder / "config.json", architectures=None)


def more_layers_than_there_are(folder: Path, _base: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=3)


def another_vocabulary(folder: Path, _base: Path) -> None:
    change_json(folder / "config.json", vocab_size=7)


def no_tokenizer(folder: Path, _base: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_template(folder: Path, _base: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def other_meaning(folder: Path, base: Path) -> None:
    change_json(base / "config.json", rope_theta=10_000.0)
    change_json(folder / "config.json", rope_theta=500_000.0)


def other_tokens(folder: Path, _base: Path) -> None:
    change_json(folder / "tokenizer.json", added_tokens=[{"id": 3, "content": "<x>"}])


def other_template(folder: Path, _base: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ other }}")


def other_tensors(_folder: Path, base: Path) -> None:
    save_file({}, base / "model.safetensors")


def reindex(folder: Path, shard: str) -> None:
    """Have the index name another file in place of the first shard."""
    named = json.loads((folder / INDEX).read_text())["weight_map"]
    change_json(folder / INDEX, weight_map={name: shard if was == FIRST else was for name, was in named.items()})


REFUSED: list[tuple[Callable[[Path, Path], None], str]] = [
    (an_index_that_leads_out, r"'\.\./model-00001-of-00002.safetensors' is no name of a file in this folder"),
    (an_absolute_index, "is no name of a file in this folder"),
    (a_hidden_shard, "is no name of a file in this folder"),
    (a_missing_shard, f"names {FIRST}, which is not there"),
    (an_extra_shard, "extra.safetensors: .* does not name it"),
    (a_shard_further_down, f"more/{FIRST}: .* does not name it"),
    (no_index, "only model.safetensors is loaded"),
    (a_tensor_that_is_elsewhere, "is not in the shard it names"),
    (a_tensor_that_is_not_named, "does not say that model.embed_tokens.weight is where it is"),
    (an_index_of_nothing, "weight_map does not name a file for each tensor"),
    (a_shard_cut_short, f"{FIRST} is cut short"),
    (a_pickle, "remove pytorch_model.bin"),
    (code_of_its_own, "config.json: auto_map asks for code"),
    (quantised, "it is quantised"),
    (no_architecture, "architectures is None"),
    (more_layers_than_there_are, "speaks of 3 layers, the weights have 2"),
    (another_vocabulary, r"embed_tokens.weight is \[6, 8\], and config.json says vocab_size 7"),
    (no_tokenizer, "it has no tokenizer"),
    (no_template, "it has no chat template"),
    (other_meaning, "rope_theta is 500000.0, that of tiny is 10000.0"),
    (other_tokens, "its tokenizer is not that of tiny"),
    (other_template, "it was saved with the chat template"),
    (other_tensors, r"its tensors are not those of tiny: model.embed_tokens.weight \(\[6, 8\], there missing\)"),
]


@pytest.mark.parametrize(("spoil", "told"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_whole_weights_that_are_not_what_they_should_be_are_refused_and_leave_nothing_behind(
    untouched: Registry, base: Path, whole: Path, spoil: Callable[[Path, Path], None], told: str
) -> None:
    spoil(whole, base)
    with pytest.raises(InvalidInput, match=told):
        brought(untouched, Folder(whole), base)
    home = untouched.settings.home
    assert left(untouched, MlflowClient(untouched.settings.mlflow, untouched.settings.mlflow)) == ([], [], [], 0)
    assert not (home / "artifacts").exists()
    assert not any((home / "registering").glob("*"))


def test_a_template_other_than_that_of_the_model_is_refused(
    registry: Registry, client: MlflowClient, whole: Path, tmp_path: Path
) -> None:
    brought(registry, Folder(whole), None)
    before = left(registry, client)
    other = make_whole(tmp_path / "other", seed=3, template="{{ other }}")
    with pytest.raises(InvalidInput, match=r"the chat template of unknown is sha256:.*, and bot@1 has sha256:"):
        brought(registry, Folder(other), None)
    assert left(registry, client) == before


def test_a_tokenizer_is_told_by_its_words_and_not_by_how_it_was_written(base: Path, whole: Path) -> None:
    path = whole / "tokenizer.json"
    said = json.loads(path.read_text())
    said["model"]["merges"] = [["a", "b"]]
    path.write_text(json.dumps(said | {"padding": {"length": 9}}, indent=3))
    assert tokenizer_digest(whole) == tokenizer_digest(base)
    path.write_text(json.dumps(said | {"model": said["model"] | {"merges": [["b", "a"]]}}))
    assert tokenizer_digest(whole) != tokenizer_digest(base)


@pytest.mark.parametrize("offered", ["folder", "run"])
def test_who_swaps_a_file_between_the_check_and_the_upload_changes_nothing(
    registry_home: Path, client: MlflowClient, whole: Path, tmp_path: Path, offered: str
) -> None:
    """The clock is read after the last check and before the upload: then the files become others, of the same form."""
    checked = folder_digest(whole)
    source = Folder(whole) if offered == "folder" else MlflowRun(their_run(client, whole))
    there = whole
    if isinstance(source, MlflowRun):
        there = Path(client.get_run(source.run_id).info.artifact_uri.removeprefix("file://")) / "model"
    other, swaps = make_whole(tmp_path / "other", seed=9, shards=2), []

    def swapping() -> datetime:
        for path in other.iterdir():
            Path(shutil.copy(path, tmp_path)).replace(there / path.name)
        (there / "extra.json").write_text("{}")
        swaps.append(folder_digest(there))
        return utc_now()

    with Registry.open(RegistrySettings(home=registry_home), clock=swapping) as registry:
        made = brought(registry, source, None)
        assert swaps, "it was swapped"
        assert swaps[0] != checked
        assert made.artifact_digest == checked
        assert folder_digest(registry.versions.fetch(made, registry_home / "adapters")) == checked


def test_a_file_that_becomes_a_link_or_a_pipe_while_it_is_copied_is_refused(
    registry: Registry, whole: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the names and the copy: what is no regular file then is neither followed nor waited for."""
    for swap in (lambda path: path.symlink_to(base / "config.json"), os.mkfifo):
        (whole / "notes.json").write_text("{}")

        def then_swapped(folder: Path, called: str, swap: Callable[[Path], None] = swap) -> None:
            check_publishable(folder, called)
            if folder == whole:
                (whole / "notes.json").unlink()
                swap(whole / "notes.json")

        monkeypatch.setattr("tuneloop.registry.versions.registering.check_publishable", then_swapped)
        with pytest.raises(InvalidInput, match=r"notes.json is a link, or was changed meanwhile"):
            brought(registry, Folder(whole), None)
        monkeypatch.undo()
        (whole / "notes.json").unlink()


def test_what_a_killed_registration_left_is_removed_by_the_next_and_a_running_ones_is_not(tmp_path: Path) -> None:
    with private_folder(tmp_path) as running:
        (left_behind := running.with_name("left")).mkdir()
        (left_behind / "model.safetensors").write_text("x")
        with private_folder(tmp_path):
            assert running.is_dir()
            assert not left_behind.exists()
        assert running.stat().st_mode & 0o077 == 0
