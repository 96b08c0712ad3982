"""Digests: the same content has the same one wherever it lies, and any change has another."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.versions.artifacts import (
    base_digest,
    check_publishable,
    folder_digest,
    template_digest,
    text_digest,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The files of a base model, in small."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


def test_a_folders_digest_is_that_of_its_sorted_names_and_digests(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes(b"two")
    (tmp_path / "sub" / "a.txt").write_bytes(b"one")
    # printf 'b.txt sha256:%s\nsub/a.txt sha256:%s' "$(printf two | sha256sum …)" "$(printf one | sha256sum …)" |
    # sha256sum
    lines = "\n".join(
        f"{name} sha256:{sha256(content).hexdigest()}" for name, content in (("b.txt", b"two"), ("sub/a.txt", b"one"))
    )
    assert folder_digest(tmp_path) == f"sha256:{sha256(lines.encode()).hexdigest()}"


def test_only_regular_files_of_known_kinds_are_publishable(base: Path) -> None:
    check_publishable(base)
    os.mkfifo(base / "adapter_model.safetensors")
    (base / "run.pkl").touch()
    (base / "link.json").symlink_to("/etc/passwd")
    said = r"remove adapter_model\.safetensors \(no regular file\), link\.json \(a link\), run\.pkl \(\.pkl\)"
    with pytest.raises(InvalidInput, match=said):
        check_publishable(base)


def test_a_copy_elsewhere_has_the_same_digests(base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(base, tmp_path / "elsewhere" / "other-name")
    for digest in (folder_digest, base_digest, template_digest):
        assert digest(base) == digest(copy)


def test_one_byte_one_name_or_one_more_file_makes_another_folder(base: Path, tmp_path: Path) -> None:
    digests = {folder_digest(base)}
    for number, change in enumerate(("byte", "name", "file")):
        copy = shutil.copytree(base, tmp_path / str(number))
        if change == "byte":
            (copy / "model.safetensors").write_bytes(b"weightt")
        elif change == "name":
            (copy / "tokenizer.json").rename(copy / "tokenizer2.json")
        else:
            (copy / "extra.txt").write_text("")
        digests.add(folder_digest(copy))
    assert len(digests) == 4


def test_documentation_does_not_make_another_base_but_weights_and_tokenizer_do(base: Path) -> None:
    before = base_digest(base)
    (base / "README.md").write_text("hello")
    assert base_digest(base) == before
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (base / name).write_text('{"changed": "yes"}')
        after = base_digest(base)
        assert after != before
        before = after


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
def test_another_end_of_turn_makes_another_base_wherever_it_is_read_from(base: Path, name: str) -> None:
    """An adapter that learned to end with one token never stops on a base whose engine waits for the other."""
    config, digests = json.loads((base / "tokenizer_config.json").read_text()), [base_digest(base)]
    for content in ('{"eos_token": "</s>"}', '{"eos_token": "<|im_end|>"}'):
        (base / name).write_text(content)
        digests.append(base_digest(base))
    (base / "tokenizer_config.json").unlink()
    digests.append(base_digest(base))
    assert len(set(digests)) == 4
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": {}}))
    unread = base_digest(base)
    (base / name).unlink()
    assert base_digest(base) == unread, "where tokenizer_config.json lists the tokens nobody reads that file"


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_folder_without_weights_or_configuration_is_no_base(base: Path, missing: str) -> None:
    (base / missing).unlink()
    with pytest.raises(InvalidInput, match=r"is no base model.*tuneloop base"):
        base_digest(base)


def test_the_template_file_wins_over_the_tokenizers_configuration(base: Path) -> None:
    assert template_digest(base) == text_digest("{{ messages }}")
    (base / "chat_template.jinja").write_text("{{ other }}")
    assert template_digest(base) == text_digest("{{ other }}")


def test_a_base_without_a_template_says_where_one_belongs(base: Path) -> None:
    (base / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"no chat template \(chat_template.jinja"):
        template_digest(base)
