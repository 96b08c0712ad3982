"""What is told beside the weights of a version: its card, and the commit that made it."""

from __future__ import annotations

import subprocess
from importlib.metadata import version as package_version
from pathlib import Path


def code_commit() -> str:
    """The commit this package runs from (`-dirty` with local changes), or its version where it was installed."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository: an installed package
        return f"tuneloop-train {package_version('tuneloop-train')}"
    return found.stdout.strip()
