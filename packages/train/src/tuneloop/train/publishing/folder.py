"""What is told beside the weights of a version: its card, and the commit that made it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib.metadata import version as package_version
from pathlib import Path

from tuneloop.registry.nouns import Interval
from tuneloop.train.base import Base


def model_card(
    *,
    model: str,
    base: Base,
    parent: str | None,
    rows: int,
    steps: int,
    metrics: Mapping[str, float],
    differences: Mapping[str, Interval],
) -> str:
    """A short README.md: what it adapts, what it learned from, what it reached."""
    lines = [
        f"# {model}",
        "",
        f"LoRA adapter on `{base.name}` ({base.digest}), chat template {base.template_digest}.",
        f"Trained {steps} steps on {rows} rows" + (f", starting from {parent}." if parent else "."),
        "",
        "| Held-out set | Perplexity | BLEU | NLL difference, nats per token (interval) |",
        "|---|---|---|---|",
    ]
    for name, gap in differences.items():
        bleu = metrics.get(f"bleu.{name}")
        shown = "–" if bleu is None else f"{bleu:.1f}"
        difference = f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        lines.append(f"| {name} | {metrics[f'perplexity.{name}']:.2f} | {shown} | {difference} |")
    return "\n".join(lines) + "\n"


def code_commit() -> str:
    """The commit this package runs from (`-dirty` with local changes), or its version where it was installed."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository: an installed package
        return f"tuneloop-train {package_version('tuneloop-train')}"
    return found.stdout.strip()
