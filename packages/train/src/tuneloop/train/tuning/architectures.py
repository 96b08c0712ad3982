"""Which architectures vLLM serves, and for which of them it takes LoRA adapters.

`architectures.txt` is what the registry of vLLM 0.32 says, one a line: `adapters`, or `whole` weights alone. vLLM
itself is not asked, it lives in an environment of its own; a test holds the list against its source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tuneloop.train.recipe.tuning import FullTuning, TuningSection

_LIST = Path(__file__).with_name("architectures.txt")


@cache
def served_architectures() -> Mapping[str, bool]:
    """Name → whether adapters are served with it."""
    lines = _LIST.read_text(encoding="utf-8").splitlines()
    return {name: how == "adapters" for name, _, how in (line.partition(" ") for line in lines)}


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """What a `config.json` says its model is; None where it does not."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None


def architecture_in(folder: Path) -> str | None:
    """The same of a base's folder."""
    return architecture_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def unserved(architecture: str | None, tuning: TuningSection) -> str | None:
    """Why vLLM would not serve what is trained on a base of this architecture, and what to do; None when it would."""
    if architecture is None:
        return "the base's config.json names no architectures, by which vLLM tells how to serve it; add them"
    takes_adapters = served_architectures().get(architecture)
    if takes_adapters is None:
        return (
            f"vLLM 0.32 names no {architecture} among the models it serves. It may run one through transformers, which "
            "only a try can tell: start an engine on this base before you train on it, or take another base"
        )
    if takes_adapters or isinstance(tuning, FullTuning):
        return None
    return (
        f"vLLM 0.32 serves {architecture} without adapters: train with tuning.method full, or merge: "
        "`tuneloop export MODEL@VERSION --to FOLDER --merge` makes whole weights that an engine of their own serves"
    )
