"""No file of somebody else's decides how much memory, time, disk or message it takes to refuse it."""

from __future__ import annotations

import errno
import inspect
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file, save_file

from registry.offered import brought, change_json, left, make_base, make_whole
from serve.engine_support import write_adapter
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.versions.artifacts import template_digest
from tuneloop.registry.versions.private import copied, private_folder
from tuneloop.registry.versions.sources import Folder

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
MOST_TOLD = 1_500


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_whole(tmp_path / "tuned", seed=2, shards=2)


def layers_beyond_number(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=10**12)


def a_layer_of_many_digits(folder: Path) -> None:
    rename_in(folder / FIRST, "model.layers.1.", f"model.layers.{'9' * 5_000}.")
    named = json.loads((folder / INDEX).read_text())["weight_map"]
    renamed = {name.replace(".1.", f".{'9' * 5_000}."): shard for name, shard in named.items()}
    change_json(folder / INDEX, weight_map=renamed)


def a_shape_of_many_dimensions(folder: Path) -> None:
    spoil_shape(folder / FIRST, [10**18] * 100_000)


def a_dimension_beyond_number(folder: Path) -> None:
    spoil_shape(folder / FIRST, [10**4_000] * 4)


def long_architectures(folder: Path) -> None:
    change_json(folder / "config.json", architectures=[1] * 100_000)


def a_name_for_terminals(folder: Path) -> None:
    named = json.loads((folder / INDEX).read_text())["weight_map"]
    change_json(folder / INDEX, weight_map=named | {"\x1b[2Jx": FIRST})


def a_boundless_tokenizer(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 2**26 + 1)


def a_boundless_template(folder: Path) -> None:
    os.truncate(folder / "chat_template.jinja", 2**20 + 1)


def a_boundless_template_in_json(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x" * (2**20 + 1)}))


def a_template_that_is_no_text(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')


def nested_folders(folder: Path) -> None:
    nested(folder, 20)


def nested(folder: Path, depth: int) -> None:
    """Folders in folders."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=here)
        below = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def rename_in(path: Path, was: str, now: str) -> None:
    """Rename tensors of a safetensors file."""
    save_file({name.replace(was, now): tensor for name, tensor in load_file(path).items()}, path)


def spoil_shape(path: Path, shape: list[int]) -> None:
    """Give the first tensor of a safetensors file another shape."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[min(header)]["shape"] = shape
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (layers_beyond_number, "speaks of 1000000000000 layers, the weights have 2"),
    (a_layer_of_many_digits, r"model.layers.9+…: no model has a layer of that number"),
    (a_shape_of_many_dimensions, r"has the shape \[10{18}, .*…; publish it again"),
    (a_dimension_beyond_number, r"has the shape \[10+…; publish it again"),
    (long_architectures, r"architectures is \[1, 1, .*…, not what kind"),
    (a_name_for_terminals, r"'\\x1b\[2Jx' is not in the shard it names"),
    (a_boundless_tokenizer, r"tokenizer.json cannot be read \(it is larger than 67108864 bytes\)"),
    (a_boundless_template, r"chat_template.jinja cannot be read \(it is larger than 1048576 bytes\)"),
    (a_boundless_template_in_json, "its chat_template is larger than 1048576 bytes"),
    (a_template_that_is_no_text, "its chat_template is no text"),
    (nested_folders, "folders are nested more than 16 deep"),
]


class Runs:
    """Whoever unpickles it runs what it says."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("pwned",)


NOT_AS_NAMED = [
    ("extra.json", pickle.dumps(Runs()), r"extra\.json cannot be read \(.*invalid start byte"),
    ("extra.json", pickle.dumps(Runs(), protocol=0), r"extra\.json is no JSON \(Expecting value"),
    ("extra.json", b"[" * 100_000, r"extra\.json is no JSON \(it is nested too deep\)"),
    ("deeper/notes.txt", b"\x80\x04.", r"deeper/notes\.txt is no text \(byte 1 is 0x04"),
    ("rows.jsonl", b"{}\n\xff", r"rows\.jsonl is no text \(near byte 0: invalid start byte"),
    ("README.md", "ä".encode()[:1], r"README\.md is no text \(near byte 1: unexpected end of data"),
    ("README.md", bytes(range(156, 256)), r"README\.md is no text"),
    ("notes.txt", pickle.dumps(Runs(), protocol=0), r"notes\.txt is a pickle"),
    ("rows.jsonl", pickle.dumps({"a": [1, 2.5, None]}, protocol=0), r"rows\.jsonl is a pickle"),
    ("extra/one.model", pickle.dumps(Runs(), protocol=1), r"extra/one\.model is a pickle"),
    ("extra/one.model", b"\x80\x04.", r"extra/one\.model is a pickle"),
    ("extra/one.model", b"PK\x03\x04", r"extra/one\.model is an archive"),
    ("extra/more.safetensors", b"\x80\x04.", r"extra/more\.safetensors is cut short or no safetensors"),
]


def test_a_file_that_is_not_what_its_name_says_is_refused_and_leaves_nothing_behind(
    registry: Registry, client: MlflowClient, tmp_path: Path
) -> None:
    base, before = make_base(tmp_path / "base"), left(registry, client)
    for number, (name, content, told) in enumerate(NOT_AS_NAMED):
        adapter = write_adapter(tmp_path / f"adapter-{number}", base, seed=0)
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=f"{told}.*take it out, or bring it as what its name says"):
            brought(registry, Folder(adapter), base)
        assert left(registry, client) == before
        assert not list((registry.settings.home / "registering").iterdir())


def test_what_is_beyond_all_bounds_is_refused_in_few_words_and_leaves_nothing_behind(
    registry: Registry, client: MlflowClient, tmp_path: Path
) -> None:
    for spoil, told in REFUSED:
        folder = make_whole(tmp_path / spoil.__name__, seed=2, shards=2)
        spoil(folder)
        with pytest.raises(InvalidInput, match=told) as refused:
            brought(registry, Folder(folder), None)
        assert len(str(refused.value)) < MOST_TOLD, spoil.__name__
        assert not any((registry.settings.home / "registering").iterdir())
    assert left(registry, client) == ([], [], [], 0)


def test_a_folder_that_grows_deep_while_it_is_copied_is_refused_and_the_copy_removed(
    registry: Registry, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at it and the copy."""

    def then_deeper(*_: object) -> None:
        nested(whole, 20)

    monkeypatch.setattr("tuneloop.registry.versions.private._expect_room", then_deeper)
    with pytest.raises(InvalidInput, match="deeper is a link, or was changed meanwhile"):
        brought(registry, Folder(whole), None)
    assert not any((registry.settings.home / "registering").iterdir())


def test_however_deep_what_was_fetched_is_it_is_removed(tmp_path: Path) -> None:
    """Deeper than the interpreter may call functions: the limit is lowered here, thousands of folders take seconds."""
    limit = sys.getrecursionlimit()
    with private_folder(tmp_path) as running:
        nested(running, 110)
        (left_behind := running.with_name("left")).mkdir()
        nested(left_behind, 110)
        sys.setrecursionlimit(len(inspect.stack(0)) + 80)
        try:
            with pytest.raises(RecursionError):
                shutil.rmtree(running)
            with private_folder(tmp_path):
                assert not left_behind.exists()
        finally:
            sys.setrecursionlimit(limit)
    assert not running.exists()


def test_what_cannot_be_removed_hides_no_error_and_is_left_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Path) -> None:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr("tuneloop.registry.versions.private.shutil.rmtree", fails)
    with pytest.raises(InvalidInput, match="the reason"), private_folder(tmp_path) as running:
        raise InvalidInput("the reason")
    assert "cannot be removed" in caplog.text
    monkeypatch.undo()
    with private_folder(tmp_path):
        assert not running.exists(), "nobody holds it any more"


@pytest.mark.parametrize("shares", [False, True])
def test_what_would_fill_the_disk_is_refused_before_a_byte_of_it_is_copied(
    tmp_path: Path, whole: Path, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a copy shares its blocks it takes no room."""
    size = sum(path.stat().st_size for path in whole.iterdir())
    free = [size + 2**28]
    monkeypatch.setattr("tuneloop.registry.versions.private.shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    monkeypatch.setattr("tuneloop.registry.versions.private._shares_blocks", lambda *_: shares)
    with private_folder(tmp_path / "home") as ours:
        assert copied(whole, ours, below=None, called="it").is_dir()
        free[0] -= 1
    with private_folder(tmp_path / "home") as ours:
        if shares:
            assert copied(whole, ours, below=None, called="it").is_dir()
            return
        with pytest.raises(
            Unavailable, match=rf"it: a copy, .* take {size + 2**28} bytes, .* has {free[0]}; make room"
        ):
            copied(whole, ours, below=None, called="it")
        assert [path for path in ours.rglob("*") if path.is_file()] == []


def test_of_two_first_registrations_at_once_both_find_the_experiment(
    registry: Registry, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one makes it between our look and our making it."""
    look = MlflowClient.get_experiment_by_name
    made: list[str] = []

    def too_early(asked: MlflowClient, name: str) -> object:
        if made:
            return look(asked, name)
        made.append(client.create_experiment(name))
        return None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    run = registry.versions.start_run("bot", name="register", params={})
    assert client.get_run(run).info.experiment_id == made[0]


def test_a_new_model_is_made_and_marked_in_one_step(
    registry: Registry, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two first registrations at once would otherwise mark it at once, which MLflow's database refuses to one."""
    marked: list[str] = []
    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", lambda _, name, *__: marked.append(name))
    brought(registry, Folder(whole), None)
    assert (registry.versions.models(), marked) == (["bot"], [])


def test_a_template_is_the_same_however_its_lines_end(whole: Path) -> None:
    path = whole / "chat_template.jinja"
    path.write_bytes(b"{{ a }}\n{{ b }}\n")
    digest = template_digest(whole)
    path.write_bytes(b"{{ a }}\r\n{{ b }}\r")
    assert template_digest(whole) == digest
