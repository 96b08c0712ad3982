"""Digests of folders: what a version is made of, told apart by content alone.

A folder's digest is the SHA-256 of its sorted `name sha256` lines, so moving or copying it changes nothing. Reading is
the cost: about 1 s per GB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Version
from tuneloop.registry.versions.bounded import entries, object_in, shown, some, text_in

PUBLISHABLE = frozenset({".safetensors", ".json", ".jsonl", ".txt", ".md", ".jinja", ".model"})
_BASE_PATTERNS = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "vocab.json",
    "merges.txt",
)
_OLDER_NAMES = ("special_tokens_map.json", "added_tokens.json")
_TOKENIZER_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
_OLDER_TOKENIZERS = ("*.model", "vocab.json", "merges.txt")
_BACK = "bring the file back that was there"
_MOST_TEMPLATE_BYTES = 2**20
_MOST_NAMES = 10  # in a message
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def text_digest(text: str) -> str:
    """`sha256:…` of a text."""
    return f"sha256:{sha256(text.encode()).hexdigest()}"


def file_digest(path: Path) -> str:
    """`sha256:…` of a file, read in pieces."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def folder_digest(folder: Path) -> str:
    """The digest of every file below the folder, by relative name and content."""
    return _digest_of(folder, (path for path in entries(folder) if path.is_file()))


def base_digest(folder: Path) -> str:
    """The digest of a base model: weights, configuration and tokenizer; documentation does not count.

    Raises:
        InvalidInput: the folder holds no model, or tokenizer_config.json is damaged.
    """
    files = {path for pattern in _BASE_PATTERNS for path in folder.glob(pattern)} | _older_names(folder)
    if not any(path.suffix == ".safetensors" for path in files) or not (folder / "config.json").is_file():
        raise InvalidInput(
            f"{folder} is no base model: it needs config.json and *.safetensors; `tuneloop base RECIPE` makes one"
        )
    return _digest_of(folder, files)


def template_digest(folder: Path) -> str:
    """The digest of a base's chat template: what turns messages into the tokens it is trained and served on.

    Raises:
        InvalidInput: the folder has no chat template, or what is there is damaged.
    """
    if (template := _template(folder)) is None:
        raise InvalidInput(
            f"{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)"
        )
    return text_digest(template)


def has_template(folder: Path) -> bool:
    """Whether there is a chat template among its files."""
    return _template(folder) is not None


def tokenizer_digest(folder: Path) -> str | None:
    """The digest of what turns text into a model's tokens, however its JSON is laid out; None where there is nothing.

    How texts are padded and cut short belongs to whoever asks, so it does not count.

    Raises:
        InvalidInput: tokenizer.json is damaged.
    """
    if not (path := folder / "tokenizer.json").is_file():
        files = [path for pattern in _OLDER_TOKENIZERS for path in folder.glob(pattern)]
        return _digest_of(folder, files) if files else None
    said = object_in(path, _BACK)
    try:
        parts: dict[str, Any] = {name: said.get(name) for name in _TOKENIZER_PARTS}
        if isinstance(merges := (parts["model"] or {}).get("merges"), list):  # older ones write "a b" for ["a", "b"]
            parts["model"] |= {"merges": [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]}
        return text_digest(json.dumps(parts, sort_keys=True))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InvalidInput(f"{path.name} cannot be read ({shown(error)}); {_BACK}") from None


def _older_names(folder: Path) -> set[Path]:
    """The files that name special tokens, the end of a turn among them, where transformers reads them: where
    tokenizer_config.json lists none. Elsewhere they say nothing, though most bases still have them."""
    found = {path for name in _OLDER_NAMES if (path := folder / name).is_file()}
    config = folder / "tokenizer_config.json"
    lists = found and config.is_file() and "added_tokens_decoder" in object_in(config, _BACK)
    return set() if lists else found


def _template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        text = text_in(path, _BACK, most_bytes=_MOST_TEMPLATE_BYTES)
        return text.replace("\r\n", "\n").replace("\r", "\n")  # however its lines end, it is the same template
    if not (path := folder / "tokenizer_config.json").is_file():
        return None
    template = object_in(path, _BACK).get("chat_template")
    if not isinstance(template, str):
        return None
    try:
        size = len(template.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{path.name}: its chat_template is no text ({shown(error)}); {_BACK}") from None
    if size > _MOST_TEMPLATE_BYTES:
        raise InvalidInput(f"{path.name}: its chat_template is larger than {_MOST_TEMPLATE_BYTES} bytes; {_BACK}")
    return template


def check_publishable(folder: Path, called: str | None = None) -> None:
    """Refuse anything but safetensors and text: a pickle can run code on whoever loads it.

    Args:
        folder: what is to be published.
        called: how messages call it; by default its path.

    Raises:
        InvalidInput: names the first files that may not be published, or says that folders are nested too deep.
    """
    bad = [
        f"{path.relative_to(folder)} ({_kind(path)})"
        for path in entries(folder, called)
        if path.is_symlink()
        or path.name.startswith(".git")  # what signatures leave out
        or not (path.is_dir() or (path.is_file() and path.suffix in PUBLISHABLE))
    ]
    if bad:
        raise InvalidInput(
            f"{called or folder}: only safetensors, JSON and text are published; remove {some(bad, _MOST_NAMES)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise InvalidInput(f"{called or folder} holds no *.safetensors; nothing to publish")


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    if path.name.startswith(".git"):
        return "part of a git repository"
    return path.suffix or "no ending" if path.is_file() else "no regular file"


def _digest_of(folder: Path, files: Iterable[Path]) -> str:
    lines = sorted(f"{path.relative_to(folder).as_posix()} {file_digest(path)}" for path in files)
    return text_digest("\n".join(lines))


def fetched_name(version: Version) -> str:
    """What a version's fetched files are called: a digest and nothing else; what goes by that name may be deleted.

    Raises:
        InvalidInput: the version's digest is none.
    """
    if not _DIGEST.fullmatch(version.artifact_digest):
        raise InvalidInput(
            f"{version.name}: {version.artifact_digest!r} is no digest of its files; its tag in MLflow was changed: do "
            "not serve it"
        )
    return version.artifact_digest.removeprefix("sha256:")
