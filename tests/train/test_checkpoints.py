"""Checkpoints that a kill at any moment leaves usable: the one before stays until the next is in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tuneloop.train.fit.checkpoints import CheckpointStore, RunState


class Killed(BaseException):
    """As abrupt as a signal."""


def sealed(store: CheckpointStore, text: str) -> None:
    folder = store.staging / "checkpoint-5"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(text)
    store.seal(folder, RunState(step=5, micro_batch=4, learning_rate=1e-4))


def weights(store: CheckpointStore) -> str:
    found = store.newest_valid()
    assert found is not None
    return (found.folder / "weights").read_text()


@pytest.mark.parametrize(("moment", "kept"), [("the old one is aside", "old"), ("the new one is in place", "new")])
def test_killed_while_a_step_is_written_again_one_of_the_two_is_kept_and_the_next_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, kept: str
) -> None:
    sealed(CheckpointStore(tmp_path, 1, print), "old")
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if moment == "the old one is aside" and self.name == "checkpoint-5":
            raise Killed
        return rename(self, target)

    def no_more(*_arguments: object, **_options: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dies)
        patched.setattr(shutil, "rmtree", no_more)
        with pytest.raises(Killed):
            sealed(CheckpointStore(tmp_path, 1, print), "new")
    store = CheckpointStore(tmp_path, 1, print)
    assert weights(store) == kept
    store.discard_staging()
    assert weights(store) == kept
    for text in ("newer", "newest"):
        sealed(store, text)
        assert weights(store) == text
    assert [path.name for path in tmp_path.iterdir() if path != store.staging] == ["step-00000005"]


def test_what_a_kill_left_aside_is_taken_back_where_it_is_looked_for_by_its_step(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1, print)
    sealed(store, "old")
    (tmp_path / "step-00000005").rename(tmp_path / ".writing-replaced")
    found = store.at(5)
    assert found is not None
    assert (found.folder / "weights").read_text() == "old"


def test_a_copy_of_a_checkpoint_is_one_of_its_own(tmp_path: Path) -> None:
    """As after a rollback: the same step with another rate."""
    store = CheckpointStore(tmp_path, 1, pytest.fail)
    sealed(store, "the same")
    found = store.newest_valid()
    assert found is not None
    shutil.copytree(found.folder, store.staging / "again")
    store.seal(store.staging / "again", found.state.model_copy(update={"rollbacks": 1}))
    again = store.newest_valid()
    assert again is not None
    assert (again.state.rollbacks, weights(store)) == (1, "the same")
