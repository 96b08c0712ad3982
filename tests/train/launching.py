"""Runs of several processes on the tiny model, each made once a session: one costs the imports of three processes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneloop.registry import Registry
from tuneloop.train.verbs.train import train

STEPS = 6
ROWS = 37  # in batches of 8: the fifth step sees 5, which two processes cannot share evenly
FSDP, ZERO3 = "fsdp", "zero3, cpu_offload: true"


@dataclass(frozen=True)
class Trained:
    """Losses by step, the version's metrics, and what was printed."""

    losses: dict[int, float]
    metrics: dict[str, float]
    said: str

    @property
    def share(self) -> float | None:
        """What rank 0 holds of the optimizer's entries; None when nothing is sharded."""
        found = re.search(r"the optimizer of ([\d,]+) of ([\d,]+) weights", self.said)
        if found is None:
            return None
        held, every = (int(number.replace(",", "")) for number in found.groups())
        return held / every


def launched(strategy: str) -> str:
    """The key of `run` that has two processes train this way."""
    return f"launch: {{processes: 2, strategy: {strategy}}},"


def write_recipe(recipe: Path, write_rows: Callable[[Path, int], object], keys: str, tuning: str = "{rank: 4}") -> Path:
    """Give the tiny model's recipe these keys in `run`, and its rows."""
    write_rows(recipe.with_name("train.jsonl"), ROWS)
    run = f"run: {{steps: {STEPS}, batch_size: 8, {keys}"
    text = recipe.read_text().replace("run: {steps: 3, batch_size: 4,", run)
    assert run in text
    recipe.write_text(text.replace("tuning: {rank: 4}", f"tuning: {tuning}"))
    return recipe


def run_in(home: Path, empty_state: Path, recipe: Path) -> Trained:
    """Train by the verb, in a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELOOP_TRAIN_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TUNELOOP_HOME", str(shutil.copytree(empty_state, home)))
        done = CliRunner().invoke(train, [str(recipe)], catch_exceptions=False)
        with Registry.open() as registry:
            version = registry.versions.get("bot", 1)
            losses = dict(registry.versions.metric_history(version.run_id, "loss"))
    return Trained(losses, dict(version.metrics), done.stdout)
