"""`tuneloop train --resume` with real processes: kill -9, SIGTERM, a full disk, several processes, a dying child."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from train.launching import FSDP, STEPS, ZERO3, Trained, launched
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.verbs.train import train

TRAIN = "import sys; from tuneloop.train.verbs.train import train; train(sys.argv[1:])"


@pytest.fixture
def at_home(registry_home: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> Path:
    monkeypatch.setenv("TUNELOOP_HOME", str(registry_home))
    monkeypatch.setenv("TUNELOOP_TRAIN_THREADS", "1")
    return registry_home


def runs(home: Path) -> list[tuple[str, str, dict[int, float]]]:
    """Every MLflow run: id, status, loss by step."""
    client = mlflow.MlflowClient(f"sqlite:///{home.resolve() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bot")
    assert experiment is not None
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        history = client.get_metric_history(run.info.run_id, "loss")
        found.append((run.info.run_id, run.info.status, {point.step: point.value for point in history}))
    return found


def edit(recipe: Path, run: str) -> None:
    text = recipe.read_text()
    recipe.write_text(text.replace("run: {steps: 3,", f"run: {{{run},"))


def started(recipe: Path, line: str, *options: str, code: str = TRAIN) -> subprocess.Popen[str]:
    """A training process that has just printed this line."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(recipe), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith(line):
            return process
    raise AssertionError(process.communicate()[1])


def test_killed_and_resumed_is_one_run_that_reaches_the_same_losses(at_home: Path, tiny_recipe: Path) -> None:
    edit(tiny_recipe, "steps: 14, checkpoint: {every_s: 0.000001, keep: 2}")
    # Any moment after the first checkpoint, which follows the line of step 1, will do: so another one each time.
    at, after_s = random.randint(2, 10), random.uniform(0, 0.2)
    print(f"killed {after_s} s after step {at}")
    process = started(tiny_recipe, f"step {at}/14")
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [(killed, status, _)] = runs(at_home)
    assert status == "RUNNING", "nobody could close it"

    refused = CliRunner().invoke(train, [str(tiny_recipe)])
    assert isinstance(refused.exception, InvalidInput)
    assert "--resume to go on with it, or --fresh" in str(refused.exception)

    done = CliRunner().invoke(train, [str(tiny_recipe), "--resume"], catch_exceptions=False)
    assert "resumed after step" in done.stdout
    [(resumed, status, losses)] = runs(at_home)
    assert (resumed, status, set(losses)) == (killed, "FINISHED", set(range(1, 15)))
    assert list((at_home / "runs").iterdir()) == [], "a finished run cleans up"

    CliRunner().invoke(train, [str(tiny_recipe)], catch_exceptions=False)
    whole = next(found for run_id, _, found in runs(at_home) if run_id != resumed)
    assert losses == whole, "bit-equal"
    with Registry.open() as registry:
        first, second = (registry.versions.get("bot", number) for number in (1, 2))
    assert first.metrics == second.metrics


def test_a_run_goes_on_by_a_recipe_with_a_key_that_is_refused_since(at_home: Path, tiny_recipe: Path) -> None:
    edit(tiny_recipe, "divergence: {max_rollbacks: 1}, steps: 3")
    text = tiny_recipe.read_text()
    model = text.splitlines()[0].removeprefix("base: {model: ").removesuffix("}")
    tiny_recipe.write_text(text.replace(model, f"{model}-away"))  # what is told next
    for options, what in (([], "max_rollbacks"), (["--resume"], "tiny-away"), (["--fresh"], "max_rollbacks")):
        done = CliRunner().invoke(train, [str(tiny_recipe), *options])
        assert isinstance(done.exception, InvalidInput)
        assert what in str(done.exception)


def test_a_dead_runs_mlflow_run_is_closed_by_the_next_one(at_home: Path, tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text()
    edit(tiny_recipe, "steps: 1000, checkpoint: {every_s: 0.000001}")
    process = started(tiny_recipe, "step 1/1000")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    tiny_recipe.write_text(text.replace("steps: 3,", "steps: 1,"))
    CliRunner().invoke(train, [str(tiny_recipe)], catch_exceptions=False)
    assert sorted(status for _, status, _ in runs(at_home)) == ["FINISHED", "KILLED"]


def test_a_signal_keeps_the_step_and_says_how_to_go_on(at_home: Path, tiny_recipe: Path) -> None:
    edit(tiny_recipe, "steps: 100000")
    process = started(tiny_recipe, "step 1/100000")
    asked = random.choice([signal.SIGTERM, signal.SIGINT])
    process.send_signal(asked)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert f"stopped by {asked.name}" in errors
    assert "is kept: the same command with --resume goes on from there" in errors
    [(_, status, losses)] = runs(at_home)
    assert status == "KILLED"
    kept = list((at_home / "runs").glob("*/checkpoints/step-*"))
    assert [path.name for path in kept] == [f"step-{max(losses):08d}"]


def test_a_full_disk_is_one_clear_error_and_older_checkpoints_stay_whole(at_home: Path, tiny_recipe: Path) -> None:
    """From the third checkpoint on the process may write no file above 4 KB, as on a disk that has just filled up."""
    edit(tiny_recipe, "steps: 8, checkpoint: {every_s: 0.000001, keep: 2}")
    code = """
import resource, signal, sys
from tuneloop.train.fit.checkpoints import CheckpointStore
seal, sealed = CheckpointStore.seal, []
def full_after_two(self, *args, **values):
    made = seal(self, *args, **values)
    sealed.append(made)
    if len(sealed) == 2:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return made
CheckpointStore.seal = full_after_two
from tuneloop.registry.versions.store import Versions
Versions.log_metrics = lambda *args, **values: None  # the tracking database lies on the same disk
from tuneloop.train.verbs.train import train
try:
    train(sys.argv[1:], standalone_mode=False)
except Exception as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sys.exit(f"{type(error).__name__}: {error}")
"""
    process = subprocess.run(
        [sys.executable, "-c", code, str(tiny_recipe)], capture_output=True, text=True, timeout=300, check=False
    )
    assert "TuneloopError: the checkpoint of step 3 could not be written" in process.stderr
    assert "those before it are whole: free disk space, then resume" in process.stderr
    done = CliRunner().invoke(train, [str(tiny_recipe), "--resume"], catch_exceptions=False)
    assert "resumed after step 2" in done.stdout


def test_a_child_that_dies_is_started_again_a_bounded_number_of_times(at_home: Path, tiny_recipe: Path) -> None:
    """Whatever it learns: here by PPO, of supervised fine-tuning below."""
    asked = [{"prompt": f"Which is {word}?", "answer": word} for word in ("red", "round", "far", "old", "new", "wet")]
    tiny_recipe.with_name("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    text = tiny_recipe.read_text().replace("validation: validation.jsonl", "quality: {near_duplicates: off}")
    objective = "{kind: ppo, rewards: contains_answer, max_prompt_length: 64, max_new_tokens: 2, passes: 1}"
    tiny_recipe.write_text(text.replace("objective: {max_length: 96}", f"objective: {objective}"))
    edit(tiny_recipe, "steps: 400, max_restarts: 1, checkpoint: {every_s: 0.000001}")
    process = started(tiny_recipe, "step 20/400")
    assert process.stdout is not None
    for _ in range(2):
        [child] = children(process.pid)
        os.kill(child, signal.SIGKILL)
        for said in process.stdout:
            if said.startswith("resumed after step"):
                break
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "training died with code -9 after 1 restarts" in errors


def test_a_lost_rank_costs_nothing_but_its_restart(
    at_home: Path, tmp_path: Path, several_in: Callable[..., Path], train_with: Callable[..., Trained]
) -> None:
    """The other rank waits for the lost one's gradients for ever, unless both are started again."""
    keys = f"max_restarts: 1, {launched(ZERO3)} checkpoint: {{every_s: 0.000001}},"
    process = started(several_in(tmp_path / "several", keys), f"step 2/{STEPS}")  # so step 1 is kept
    [torchrun] = children(process.pid)
    lost = random.choice(children(torchrun))
    os.kill(lost, signal.SIGKILL)
    said, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "restart 1 of 1" in said
    assert re.search(r"resumed after step [1-6] ", said), said
    [(_, _, losses)] = runs(at_home)
    assert set(losses) == set(range(1, STEPS + 1))
    assert losses == pytest.approx(train_with(launched(ZERO3)).losses, abs=1e-6)


def test_a_sharded_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    at_home: Path, tmp_path: Path, several_in: Callable[..., Path], train_with: Callable[..., Trained]
) -> None:
    recipe = several_in(tmp_path / "several", f"{launched(FSDP)} checkpoint: {{every_s: 0.000001}},")
    process = started(recipe, f"step 1/{STEPS}")
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=100)[1]
    assert "stopped by SIGTERM" in errors
    done = CliRunner().invoke(train, [str(recipe), "--resume"], catch_exceptions=False)
    assert re.search(r"resumed after step [1-5] ", done.stdout)
    [(_, _, losses)] = runs(at_home)
    assert set(losses) == set(range(1, STEPS + 1))
    assert losses == pytest.approx(train_with(launched(FSDP)).losses, abs=1e-6)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
