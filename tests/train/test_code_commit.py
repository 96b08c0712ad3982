"""By which commit code is known: that of its own repository, as it was when the process began."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version as package_version
from pathlib import Path

import pytest

from train.worker.crew import COMMIT, worker
from tuneloop.registry import Registry
from tuneloop.train.base import Base
from tuneloop.train.job import kept
from tuneloop.train.publishing import folder as real
from tuneloop.train.recipe import load_recipe
from tuneloop.train.tuning.models import Loader

AS_INSTALLED = f"tuneloop-train {package_version('tuneloop-train')}"


def git(folder: Path, *asked: str) -> str:
    who = ("-c", "user.name=ann", "-c", "user.email=ann@example.org")
    done = subprocess.run(["git", *who, *asked], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def begun_from(file: Path) -> Callable[[], str]:
    """What a process that loads this file says."""
    spec = importlib.util.spec_from_file_location("copied", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    asked: Callable[[], str] = made.code_commit
    return asked


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """The module in a repository of its own, not yet committed."""
    git(tmp_path, "init", "-q")
    return Path(shutil.copy(real.__file__, tmp_path / "folder.py"))


def test_the_commit_is_that_of_the_repository_that_holds_the_code(ours: Path) -> None:
    (ours.parent / "notes.txt").write_text("a user's own")
    git(ours.parent, "add", "notes.txt")
    git(ours.parent, "commit", "-qm", "first")
    assert begun_from(ours)() == AS_INSTALLED, "the repository around it is a user's"
    git(ours.parent, "add", "folder.py")
    git(ours.parent, "commit", "-qm", "second")
    commit = git(ours.parent, "rev-parse", "HEAD")
    began = begun_from(ours)
    assert began() == commit
    with ours.open("a") as file:
        file.write("\n")
    assert begun_from(ours)() == f"{commit}-dirty"
    assert began() == commit, "what is loaded stays what it was"


def test_a_worker_notes_its_commit_as_it_begins(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("tuneloop.train.retraining.worker.code_commit", lambda: asked.append("now"))
    worker(registry)
    assert asked == ["now"]


def test_scores_of_code_with_changes_that_no_commit_tells_are_not_used_again(
    tiny: Base, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny_recipe).recipe
    loader = Loader(tiny, recipe.tuning, "float32", "cpu", "sdpa")
    monkeypatch.setattr(kept, "code_commit", lambda: COMMIT)
    assert COMMIT in kept.conditions(recipe, loader)["tuneloop"]
    monkeypatch.setattr(kept, "code_commit", lambda: f"{COMMIT}-dirty")
    assert kept.conditions(recipe, loader) == {}
