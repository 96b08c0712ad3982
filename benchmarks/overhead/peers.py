"""The peers' own environments, made when they are first needed and never part of ours.

vllm-router and LiteLLM come from PyPI, each into an environment below the given folder; nginx and wrk are Debian
packages that must be installed. Whatever cannot be had is told and left out of the tables.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {"vllm-router": "vllm-router==0.1.17", "litellm": "litellm[proxy]"}
NEEDED = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux"}


def python_of(peer: str, folder: Path) -> Path | str:
    """The interpreter of a peer's environment, or why there is none."""
    home = folder / peer
    python, done = home / "bin" / "python", home / ".done"
    if done.exists():
        return python
    uv = str(Path(sys.executable).with_name("uv"))
    made = subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, home], check=False)
    if made.returncode:
        return "its environment cannot be made"
    command: list[str | Path] = [uv, "pip", "install", "-q", "--no-config", "--python", python, PACKAGES[peer]]
    installed = subprocess.run(command, check=False, capture_output=True, text=True)
    if installed.returncode:
        return f"it cannot be installed: {installed.stderr.strip().splitlines()[-1]}"
    done.touch()
    return python


def version_of(peer: str, python: Path) -> str:
    """Which version was installed."""
    code = f"from importlib.metadata import version; print(version({peer!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def missing() -> list[str]:
    """What must be installed by hand before anything can be measured."""
    return [f"{name} (apt-get install {package})" for name, package in NEEDED.items() if not shutil.which(name)]
