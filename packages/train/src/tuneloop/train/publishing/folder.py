"""What is told beside the weights of a version: the commit that made it, and what was installed there."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import distributions
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any


def code_commit() -> str:
    """The commit this package runs from (`-dirty` with local changes), or its version where it was installed."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository: an installed package
        return f"tuneloop-train {package_version('tuneloop-train')}"
    return found.stdout.strip()


def environment() -> dict[str, Any]:
    """What this process runs on and could import; no name or path of this machine."""
    found = {one.metadata["Name"].lower(): one.version for one in distributions()}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": dict(sorted(found.items())),
    }
