"""One export: the version's files, merged and quantised as asked, measured as they came out, under a manifest.

An adapter is always merged into its unquantised base, whatever it was trained on: merged into quantised weights its
answers shift. The folder appears by a rename, whole or not at all, with `tuneloop-export.json` written last: the
digest of every file. Loads the model in float32, twice where weights change, to measure it before and as it came out.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Interval, Version
from tuneloop.registry.versions.artifacts import check_publishable, file_digest, folder_digest
from tuneloop.train.base import Base, base_of
from tuneloop.train.data.label_audit import label_rows
from tuneloop.train.data.labels import LabelledRow, Labeller, ends_of
from tuneloop.train.data.templates import FILE as TEMPLATE
from tuneloop.train.evaluation.measure import pad_token_id, score_rows
from tuneloop.train.evaluation.statistics import RowScore, paired_difference, perplexity
from tuneloop.train.export.quantise import Quantisation, save_quantised
from tuneloop.train.fit.reward import MANIFEST as REWARD_MODEL
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe import Recipe
from tuneloop.train.screen import Screen
from tuneloop.train.tuning import models
from tuneloop.train.tuning.bottleneck import PEFT_TYPE
from tuneloop.train.tuning.full import copy_beside, save_whole, stored_dtype

MANIFEST = "tuneloop-export.json"


@dataclass(frozen=True)
class Loss:
    """What one held-out set says of an export: perplexity as published and as exported, and the paired difference."""

    published: float
    exported: float
    difference: Interval  # nats per token, exported minus published


@dataclass(frozen=True)
class Exported:
    """What was written."""

    version: str
    folder: Path
    whole: bool  # whole weights, which an engine serves as its base; an adapter otherwise
    quantization: Quantisation | None
    size_bytes: int
    whole_bytes: int  # of the same model's weights unquantised
    digest: str  # of the folder without its manifest
    losses: Mapping[str, Loss]  # empty where no weight was changed


def export_version(
    registry: Registry, version: Version, to: Path, *, merge: bool, quantize: Quantisation | None, screen: Screen
) -> Exported:
    """Write the version to the new folder `to`.

    Raises:
        InvalidInput: the folder is there already, or this version cannot be merged or quantised; nothing was written.
    """
    if to.exists():
        raise InvalidInput(f"{to} is there already; choose a folder that does not exist yet")
    published = registry.versions.fetch(version, registry.settings.home / "adapters")
    if (merge or quantize) and (published / REWARD_MODEL).is_file():
        raise InvalidInput(
            f"{version.name} is a reward model: merged, its weights would be a language model that nothing was trained "
            "to be, without the head that scores; export it as it is, without --merge and --quantize"
        )
    kind = models.saved_kind(published)
    _check(version, kind, merge=merge, quantize=quantize)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as scratch:
        folder = Path(scratch) / to.name
        losses: Mapping[str, Loss] = {}
        whole_bytes = version.artifact_bytes
        if merge or quantize:
            folder.mkdir()
            lineage = Lineage(registry.versions, version)
            file = lineage.recipe()
            base = base_of(version, file.recipe, registry.settings.home / "bases", relative_to=file.folder)
            labelled = _labelled(lineage, base, file.recipe)
            whole_bytes, losses = _write_whole(base, published, folder, quantize, labelled, screen)
            for name in ("README.md", TEMPLATE):  # the template a version was trained with may not be its base's
                if (published / name).is_file():
                    shutil.copyfile(published / name, folder / name)
        else:
            shutil.copytree(published, folder)
        check_publishable(folder)
        digest = folder_digest(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        whole = kind is None or merge or quantize is not None
        made = Exported(version.name, to, whole, quantize, size, whole_bytes, digest, losses)
        (folder / MANIFEST).write_text(_manifest(made, version, folder), encoding="utf-8")
        folder.rename(to)
    return made


def _check(version: Version, kind: str | None, *, merge: bool, quantize: Quantisation | None) -> None:
    if kind is None and merge:
        raise InvalidInput(f"{version.name} is a full set of weights: there is nothing to merge; leave --merge out")
    if kind == PEFT_TYPE and (merge or quantize):
        raise InvalidInput(
            f"{version.name} is a bottleneck adapter: its non-linearity merges into no weight; export it as it is, "
            "or train with tuning.method lora"
        )


def _write_whole(
    base: Base,
    published: Path,
    folder: Path,
    quantize: Quantisation | None,
    labelled: Mapping[str, list[LabelledRow]],
    screen: Screen,
) -> tuple[int, dict[str, Loss]]:
    """Whole weights into `folder`; their size unquantised, and what was lost on each set."""
    pad_id = pad_token_id(models.load_tokenizer(base))
    device = models.choose_device().value

    def scored(model: Any) -> dict[str, list[RowScore]]:
        return {name: score_rows(model, rows, pad_id=pad_id, check=lambda: None) for name, rows in labelled.items()}

    if models.saved_kind(published) is None:
        model = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32).to(device).eval()
        before = scored(model)
    else:
        adapted = models.load_base(base, dtype="float32", device=device, attention="sdpa")
        adapted = models.load_adapter(adapted, published, trainable=False)
        before = scored(adapted)
        model = adapted.merge_and_unload(safe_merge=True)
        screen.say(f"merged into {base.name}, unquantised")
    dtype = stored_dtype(base.folder)
    whole_bytes = sum(value.numel() * dtype.itemsize for value in model.parameters())
    if quantize is None:
        save_whole(model, folder, base)
    else:
        save_quantised(model.to(dtype), quantize, folder)
        copy_beside(base.folder, folder)
        screen.say(f"quantised to {quantize}; embeddings and output head stay {str(dtype).removeprefix('torch.')}")
    del model
    after = scored(_reloaded(folder, device))
    return whole_bytes, {
        name: Loss(perplexity(before[name]), perplexity(after[name]), paired_difference(before[name], after[name]))
        for name in labelled
    }


def _reloaded(folder: Path, device: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()


def _labelled(lineage: Lineage, base: Base, recipe: Recipe) -> dict[str, list[LabelledRow]]:
    labeller = Labeller(
        models.load_tokenizer(base), recipe.objective.max_length, recipe.objective.template, ends_of(base.folder)
    )
    return {name: label_rows(labeller, rows, base.template_digest)[0] for name, rows in lineage.set_rows().items()}


def _manifest(made: Exported, version: Version, folder: Path) -> str:
    said = {
        "version": version.name,
        "artifact_digest": version.artifact_digest,
        "base": version.base,
        "base_digest": version.base_digest,
        "template_digest": version.template_digest,
        "whole": made.whole,
        "quantization": made.quantization,
        "digest": made.digest,
        "files": {
            path.relative_to(folder).as_posix(): file_digest(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    return json.dumps(said, indent=2) + "\n"
