"""All weights of a base, trained and published.

They are trained in float32 whatever the run computes in: in bfloat16 a step of a hundred-thousandth of a weight rounds to
nothing, and the run would end where it began without a word. They are published in the base's own format, as a folder
that is a base itself: config, safetensors, tokenizer, chat template. Rounding to that format happens before the last
measure, so what is measured is what is published.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tuneloop.train.base import Base

_BESIDE_WEIGHTS = (
    "tokenizer*",
    "*.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def stored_dtype(folder: Path) -> torch.dtype:
    """The number format a model folder keeps its weights in (float32 where it does not say)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found: torch.dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    return found


def save_whole(model: Any, folder: Path, base: Base) -> None:
    """Write a model folder in the base's own format, with the base's tokenizer and template file by file.

    The model itself is left rounded to that format.
    """
    computed_in = model.dtype
    model.to(stored_dtype(base.folder))
    model.config.dtype = model.dtype
    model.save_pretrained(folder)
    model.to(computed_in)
    copy_beside(base.folder, folder)


def copy_beside(source: Path, folder: Path) -> None:
    """Copy what a model folder holds beside its weights and config."""
    for pattern in _BESIDE_WEIGHTS:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
