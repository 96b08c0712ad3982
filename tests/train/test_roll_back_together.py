"""Several processes that roll back go on from one checkpoint, however far apart they look for it."""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import TCPStore

from tuneloop.train.fit.checkpoints import CheckpointStore, RunState
from tuneloop.train.recipe import Recipe

_PATIENCE_S = 120.0  # for what hangs
_MOMENT_S = 3.0  # how long the one that looks late waits for the other to be in the midst of writing


def test_a_process_that_looks_late_finds_the_checkpoint_that_the_first_is_about_to_replace(tmp_path: Path) -> None:
    """While rank 0 puts the lowered rate into the checkpoint's place, that place is empty for a moment: whoever looked
    then would go on from an older step than the others, or put back what is being replaced."""
    store = CheckpointStore(tmp_path / "checkpoints", 2, pytest.fail)
    for step in (1, 2):
        written = store.staging / "made"
        written.mkdir(parents=True)
        (written / "weights").write_text(f"of step {step}")
        store.seal(written, RunState(step=step, micro_batch=4, learning_rate=0.01))
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=_roll_back, args=(number, meeting.port, str(tmp_path))) for number in (0, 1)]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(_PATIENCE_S)
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    lowered = RunState(step=2, micro_batch=4, learning_rate=0.005, rollbacks=1)
    for number in (0, 1):
        assert RunState.model_validate_json((tmp_path / f"{number}.found").read_text()) == lowered
    found = store.newest_valid()
    assert found is not None
    assert found.state == lowered


def _roll_back(number: int, port: int, folder: str) -> None:
    between, looked = Path(folder, "between"), Path(folder, "looked")

    class Store(CheckpointStore):
        """Rank 1 looks while rank 0 is in the midst of replacing, if it can."""

        def newest_valid(self) -> Any:
            if number == 1:
                _wait_for(between, _MOMENT_S)
            found = super().newest_valid()
            if number == 1:
                looked.touch()
            return found

    move = Path.rename

    def rename(self: Path, target: Path) -> Path:
        moved = move(self, target)
        if number == 0 and self.name == "step-00000002":  # its place is empty now
            between.touch()
            _wait_for(looked, _PATIENCE_S)
        return moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        _go(number, port, folder, Store(Path(folder, "checkpoints"), 2, lambda _line: None))


def _go(number: int, port: int, folder: str, store: CheckpointStore) -> None:
    import torch.distributed as dist

    from tuneloop.train.fit.attempts import Fitting, _Attempts
    from tuneloop.train.fit.divergence import Diverged
    from tuneloop.train.fit.progress import Watch
    from tuneloop.train.screen import Screen

    meeting = TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=meeting, rank=number, world_size=2, timeout=timedelta(seconds=_PATIENCE_S))
    values = {"run": {"steps": 4, "batch_size": 8, "divergence": {"action": "rollback"}}}
    sections = {"base": {"model": "x"}, "data": {"train": "x.jsonl"}, "evaluate": {"sets": {"held": "x.jsonl"}}}
    recipe = Recipe.model_validate(sections | values | {"publish": {"model": "bot"}})
    watch = Watch(Screen(), lambda *_: None, lambda: None)
    attempts = _Attempts(lambda *_: None, Fitting(recipe, "cpu", 4, 8, 4, watch, store), store)
    guard: Any = SimpleNamespace(state=RunState(step=2, micro_batch=4, learning_rate=0.01))
    checkpoint, state = attempts._roll_back(Diverged(3, "the loss is nan", ""), guard)
    assert checkpoint is not None
    assert checkpoint.state == state
    Path(folder, f"{number}.found").write_text(state.model_dump_json())
    dist.destroy_process_group()


def _wait_for(path: Path, most_s: float) -> None:
    ends = time.monotonic() + most_s
    while not path.exists() and time.monotonic() < ends:
        time.sleep(0.01)
