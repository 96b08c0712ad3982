"""A run's folder and its MLflow run: both are left in order, whoever dies and whatever is away meanwhile."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from tuneloop.registry import Registry
from tuneloop.registry.errors import Conflict, InvalidInput, Unavailable
from tuneloop.train.fit.checkpoints import RunState
from tuneloop.train.fit.runs import Begin, RunFolder, RunRecord, _lock, held_run, remove_ended
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import _tracked
from tuneloop.train.recipe import load_recipe


def quiet(_line: str) -> None:
    """What is said is looked at where it matters."""


def dead(home: Path, key: str) -> RunFolder:
    """The folder of a run whose process is gone and whose MLflow run is open."""
    path = home / "runs" / key
    path.mkdir(parents=True)
    folder = RunFolder(path, quiet)
    folder.write(RunRecord(mlflow_run_id=f"mlflow-of-{key}"))
    return folder


def test_a_dead_run_can_be_gone_on_with_while_mlflow_is_told_of_its_death(tmp_path: Path) -> None:
    left = dead(tmp_path, "left")
    closed: list[str] = []

    def close(run_id: str) -> None:
        with held_run(tmp_path, "left", "either", say=quiet, close=quiet):
            closed.append(run_id)

    with held_run(tmp_path, "mine", "new", say=quiet, close=close):
        assert closed == ["mlflow-of-left"]
    assert left.record is None, "whoever held it meanwhile began anew"


def test_a_dead_run_is_closed_once_and_again_where_mlflow_was_away(tmp_path: Path) -> None:
    left = dead(tmp_path, "left")

    def away(_run_id: str) -> NoReturn:
        raise Unavailable("MLflow does not answer")

    with pytest.raises(Unavailable), held_run(tmp_path, "mine", "new", say=quiet, close=away):
        pass
    closed: list[str] = []
    for _ in range(2):
        with held_run(tmp_path, "mine", "new", say=quiet, close=closed.append):
            pass
    assert closed == ["mlflow-of-left"]
    assert left.record == RunRecord(mlflow_run_id="mlflow-of-left", open=False)


def test_what_a_retraining_that_is_over_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = {
        "over": RunRecord(mlflow_run_id="a", open=False, request_id="rt_over"),
        "waits": RunRecord(mlflow_run_id="b", open=False, request_id="rt_waits"),
        "open": RunRecord(mlflow_run_id="c", open=True, request_id="rt_over"),
        "ours": RunRecord(mlflow_run_id="d", open=False),
    }
    for key, record in left.items():
        folder = dead(tmp_path, key)
        folder.write(record)
        folder.checkpoints.mkdir()
    remove_ended(tmp_path, lambda request_id: request_id == "rt_over")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"waits", "open", "ours"}


def test_who_looks_into_a_folder_for_a_moment_turns_no_training_away(tmp_path: Path) -> None:
    pauses: list[bool] = []
    with ExitStack() as looking:
        looking.enter_context(_lock(tmp_path / "runs" / "mine"))

        def pause(_seconds: float) -> None:
            pauses.append(True)
            looking.close()

        with held_run(tmp_path, "mine", "new", say=quiet, close=quiet, pause=pause):
            assert pauses == [True]
    with (
        _lock(tmp_path / "runs" / "mine"),
        pytest.raises(Conflict, match="another process is training this very run"),
        held_run(tmp_path, "mine", "new", say=quiet, close=quiet, pause=lambda _seconds: pauses.append(False)),
    ):
        pass
    assert pauses == [True, False], "who stays is at work: it was tried again once"


@pytest.fixture
def said_without_mlflow(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of a run that MLflow cannot be told the end of."""

    def away(_run_id: str, _status: str) -> NoReturn:
        raise Unavailable("MLflow does not answer")

    monkeypatch.setattr(registry.versions, "end_run", away)
    return []


def test_a_run_that_went_well_stays_so_though_mlflow_cannot_be_told(
    registry: Registry, said_without_mlflow: list[str], tmp_path: Path
) -> None:
    folder = dead(tmp_path, "mine")
    with _tracked(registry.versions, folder, lambda: "new", said_without_mlflow.append) as run_id:
        assert run_id == "mlflow-of-mine"
    assert not folder.path.exists()
    assert said_without_mlflow == [
        "warning: MLflow run mlflow-of-mine is FINISHED, but is not closed: MLflow does not answer"
    ]


def test_what_a_run_died_of_is_raised_though_mlflow_cannot_be_told_and_the_next_run_tells_it(
    registry: Registry, said_without_mlflow: list[str], tmp_path: Path
) -> None:
    folder = dead(tmp_path, "mine")
    with (
        pytest.raises(ValueError, match="the real reason"),
        _tracked(registry.versions, folder, lambda: "new", said_without_mlflow.append),
    ):
        raise ValueError("the real reason")
    closed: list[str] = []
    with held_run(tmp_path, "other", "new", say=quiet, close=closed.append):
        assert closed == ["mlflow-of-mine"]


def test_another_chat_template_is_another_run(tiny_recipe: Path, tmp_path: Path) -> None:
    """The rows would be other tokens: what an unfinished run had learned must not be gone on with."""
    job = job_from_recipe(load_recipe(tiny_recipe), tmp_path)
    again = job_from_recipe(load_recipe(tiny_recipe), tmp_path)
    assert again.key == job.key
    (job.base.folder / "chat_template.jinja").rename(tmp_path / "template")
    try:
        (job.base.folder / "chat_template.jinja").write_text(f"{(tmp_path / 'template').read_text()} ")
        assert job_from_recipe(load_recipe(tiny_recipe), tmp_path).key != job.key
    finally:
        (tmp_path / "template").replace(job.base.folder / "chat_template.jinja")


def test_another_tokenizer_is_another_run(tiny_recipe: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """The same text would be other tokens, and what was learned of the ones would be gone on with on the others."""
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    tiny_recipe.write_text(tiny_recipe.read_text().replace(str(tiny_folder), str(base)))
    keys = [job_from_recipe(load_recipe(tiny_recipe), tmp_path).key]
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"].pop()
    (base / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    keys.append(job_from_recipe(load_recipe(tiny_recipe), tmp_path).key)
    (base / "added_tokens.json").write_text('{"<|stop|>": 49152}')
    (base / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    keys.append(job_from_recipe(load_recipe(tiny_recipe), tmp_path).key)
    (base / "added_tokens.json").write_text('{"<|end|>": 49152}')
    keys.append(job_from_recipe(load_recipe(tiny_recipe), tmp_path).key)
    assert len(set(keys)) == 4


def test_a_run_that_is_measured_on_other_rows_is_another(tiny_recipe: Path, tmp_path: Path) -> None:
    """Its MLflow run would hold scores of both."""
    job = job_from_recipe(load_recipe(tiny_recipe), tmp_path)
    ((name, rows),) = job.sets.items()
    for sets in ({name: rows[1:]}, {"renamed": rows}, {name: rows, "more": rows[:3]}):
        assert replace(job, sets=sets).key != job.key
    assert replace(job, sets=dict(job.sets)).key == job.key


def test_where_every_checkpoint_is_spoilt_each_is_named_and_a_resumed_run_begins_anew(tmp_path: Path) -> None:
    left = dead(tmp_path, "mine")
    store = left.store(keep=2)
    for step in (3, 4):
        written = store.staging / f"checkpoint-{step}"
        written.mkdir(parents=True)
        (written / "weights").write_text(f"of step {step}")
        store.seal(written, RunState(step=step, micro_batch=4, learning_rate=1e-4))
    assert [path.name for path in sorted(left.checkpoints.glob("step-*"))] == ["step-00000003", "step-00000004"]
    (left.checkpoints / "step-00000003" / "weights").write_text("torn")
    (left.checkpoints / "step-00000004" / "weights").unlink()
    said: list[str] = []
    with held_run(tmp_path, "mine", "resume", say=said.append, close=quiet) as folder:
        assert folder.store(keep=2).newest_valid() is None
        assert folder.record is None, "it is another run"
        assert not list(folder.checkpoints.glob("step-*"))
    assert said == [
        "checkpoint step-00000004 is skipped: weights is missing",
        "checkpoint step-00000003 is skipped: weights is not what was written (its digest differs)",
        "there is no checkpoint to resume from; the run begins anew",
    ]


@pytest.mark.parametrize("begin", ["resume", "either"])
def test_a_run_that_was_rolled_back_to_its_beginning_is_gone_on_with(tmp_path: Path, begin: Begin) -> None:
    """Begun anew it would diverge again, at the rate that was too high."""
    for rollbacks, rate in ((0, 2e-4), (1, 1e-4)):
        left = dead(tmp_path, f"rolled back {rollbacks} times")
        store = left.store(keep=1)
        written = store.staging / "checkpoint-0"
        written.mkdir(parents=True)
        store.seal(written, RunState(micro_batch=4, learning_rate=rate, rollbacks=rollbacks))
        if rollbacks:
            with (
                pytest.raises(InvalidInput, match="stopped after step 0: give --resume"),
                held_run(tmp_path, left.path.name, "new", say=quiet, close=quiet),
            ):
                pass
        with held_run(tmp_path, left.path.name, begin, say=quiet, close=quiet) as folder:
            found = folder.store(keep=1).newest_valid()
            assert (found is not None) is (folder.record is not None) is (rollbacks > 0)
            assert found is None or found.state.learning_rate == rate
