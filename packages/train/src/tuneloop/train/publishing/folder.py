"""From a trained adapter to what is registered: a folder of safetensors and text, without this machine's paths."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from tuneloop.train.base import Base


def save_adapter(model: Any, folder: Path, base: Base, card: str) -> None:
    """Write adapter_model.safetensors, adapter_config.json and README.md; the base is named, never located."""
    # Embeddings are never trained here; left to itself PEFT would look for the base's vocabulary on the hub.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def code_commit() -> str:
    """The commit this package runs from (`-dirty` with local changes), or its version where it was installed."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository: an installed package
        return f"tuneloop-train {package_version('tuneloop-train')}"
    return found.stdout.strip()
