"""Every recipe that comes with tuneloop trains: for two steps, on a base and rows of the test's own."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from small_base import WORDS, make_small_base
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Version
from tuneloop.registry.settings import RegistrySettings
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import run_job
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.named import named_recipes
from tuneloop.train.screen import Screen
from tuneloop.train.stages import run_stages
from tuneloop.train.stopping import StopFlag

RECIPES = sorted(named_recipes())


@dataclass
class Workshop:
    """A base, rows of every kind, and the versions that were trained."""

    folder: Path
    registry: Registry

    def recipe(self, name: str) -> Path:
        """The recipe as its user would change it: another base, two steps, small batches."""
        text = named_recipes()[name].text
        text = re.sub(r"HuggingFaceTB/\S+", str(self.folder / "base"), text)
        text = re.sub(r"epochs: *[\d.]+", "steps: 2", text)
        text = re.sub(r"(?<!\w)steps: *\d+", "steps: 2", text)
        text = text.replace("run: {steps: 2, epochs: null}", "run: {steps: 2}")
        text = re.sub(r"^  dtype: auto.*\n", "", text, flags=re.MULTILINE)
        text = re.sub(r"batch_size: *\d+", "batch_size: 8\n  dtype: bfloat16", text)  # as on every GPU
        text = re.sub(r"(max_new_tokens|generate): *\d+", r"\1: 4", text)
        if extended := re.search(r"^extends: (\w+)$", text, re.MULTILINE):
            text = text.replace(extended[0], f"extends: {self.recipe(extended[1]).name}")
        path = self.folder / f"{name}.yaml"
        path.write_text(text)
        return path

    def trained(self, name: str) -> Version:
        file = load_recipe(self.recipe(name))
        screen, stop = Screen(io.StringIO()), StopFlag()
        if file.stages:
            return list(run_stages(file, self.registry, screen=screen, stop=stop).values())[-1].version
        job = job_from_recipe(file, self.registry.settings.home, self.registry)
        return run_job(job, self.registry, screen=screen, stop=stop).version


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("ready")
    make_small_base(folder / "base")
    (folder / "data").mkdir()

    def write(name: str, first: int, count: int, preferences: bool = False) -> None:
        lines = []
        for n in range(first, first + count):
            question = " ".join(WORDS[(n * factor + n // 50) % 50] for factor in (1, 7, 3, 11, 13))
            answer = " ".join(WORDS[(n * factor + 1) % 50] for factor in (3, 5, 17, 19, 23, 29))
            row = {"prompt": question, "chosen": f"{answer} good", "rejected": f"{answer} bad"}
            if not preferences:
                row = {"instruction": question, "output": answer}
            lines.append(json.dumps(row) + "\n")
        (folder / "data" / name).write_text("".join(lines))

    write("train.jsonl", 0, 32)
    write("questions.jsonl", 0, 32)
    write("validation.jsonl", 100, 8)
    write("test.jsonl", 200, 12)
    write("preferences.jsonl", 300, 32, preferences=True)
    write("preferences-test.jsonl", 400, 12, preferences=True)
    with Registry.open(RegistrySettings(home=shutil.copytree(empty_state, folder / "home"))) as registry:
        yield Workshop(folder, registry)


@pytest.mark.parametrize("name", RECIPES)
def test_a_ready_recipe_trains(name: str, workshop: Workshop, offline: None) -> None:
    if name == "ppo":  # it names a version of this one
        workshop.trained("reward")
    version = workshop.trained(name)
    assert version.metrics
    assert version.artifact_bytes > 0
