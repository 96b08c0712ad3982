"""What is told beside the weights of a version: the commit that made it, and what was installed there."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import distributions
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any


@cache
def code_commit() -> str:
    """The commit this package runs from (`-dirty` with local changes), or its version where it was installed.

    As it was when first asked: a process goes on with the code it has loaded, whatever becomes of the files.
    """
    here = Path(__file__)
    try:
        _git("ls-files", "--error-unmatch", here.name, cwd=here.parent)  # the repository around may be another's
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", cwd=here.parent)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository of ours: an installed package
        return f"tuneloop-train {package_version('tuneloop-train')}"


def _git(*asked: str, cwd: Path) -> str:
    return subprocess.run(
        ["git", *asked], cwd=cwd, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def environment() -> dict[str, Any]:
    """What this process runs on and could import; no name or path of this machine."""
    found = {one.metadata["Name"].lower(): one.version for one in distributions()}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": dict(sorted(found.items())),
    }
