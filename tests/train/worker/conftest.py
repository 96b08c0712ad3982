"""A model with a version that was trained for real, and a request to train it again."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests_support import request_record
from train.worker.crew import COMMIT, MAIL, filed
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Feedback, Message, RetrainingRequest, Version
from tuneloop.registry.settings import RegistrySettings
from tuneloop.train.job import kept
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import run_job
from tuneloop.train.recipe import load_recipe
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag

Rows = Callable[[int, int], list[dict[str, str]]]


@pytest.fixture(scope="session")
def trained_home(
    tmp_path_factory: pytest.TempPathFactory, recipe_in: Callable[[Path], Path], empty_state: Path
) -> Path:
    """A state folder in which version 1 of `bot` was trained for real, once; each test works on a copy."""
    folder = tmp_path_factory.mktemp("trained")
    with (
        pytest.MonkeyPatch.context() as patched,
        Registry.open(RegistrySettings(home=shutil.copytree(empty_state, folder / "home"))) as registry,
    ):
        patched.setattr(kept, "code_commit", lambda: COMMIT)
        job = job_from_recipe(load_recipe(recipe_in(folder)), registry.settings.home)
        run_job(job, registry, screen=Screen(io.StringIO()), stop=StopFlag())
    return folder / "home"


@pytest.fixture
def registry_home(tmp_path: Path, trained_home: Path) -> Path:
    return Path(shutil.copytree(trained_home, tmp_path / "home"))


@pytest.fixture
def champion(registry: Registry) -> Version:
    return registry.versions.get("bot", 1)


@pytest.fixture
def request_waiting(registry: Registry, champion: Version, make_rows: Rows) -> RetrainingRequest:
    """An approved request over a window with 30 corrections: one repeats an evaluation row, one holds an address."""
    began = registry.clock() - timedelta(minutes=5)
    asked = [*make_rows(100, 28), make_rows(60, 1)[0], {"instruction": f"Who is {MAIL}?", "output": f"Ask {MAIL}."}]
    records = [
        request_record(n, began + timedelta(seconds=n), messages=(Message(role="user", content=row["instruction"]),))
        for n, row in enumerate(asked)
    ]
    registry.traffic.add_requests(records)
    registry.traffic.add_feedback(
        [
            Feedback(id=f"fb-{n}", request_id=f"req-{n}", at=record.at, thumb="down", correction=row["output"])
            for n, (row, record) in enumerate(zip(asked, records, strict=True))
        ]
    )
    return filed(registry, window_start=records[0].at, window_end=records[-1].at)
