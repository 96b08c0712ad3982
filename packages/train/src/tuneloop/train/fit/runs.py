"""A run's folder, `<home>/runs/<key>/`: its checkpoints, and which MLflow run it belongs to, so that it can go on.

The key is a digest of what is trained, so the same recipe on the same data and base finds its own unfinished run. A
lock that dies with its holder says who is at work: a folder nobody holds is a run that died, and its MLflow run is
closed by the next one that starts. A finished run's folder is removed.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import sleep
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tuneloop.registry.errors import Conflict, InvalidInput
from tuneloop.registry.files import write_atomically
from tuneloop.registry.versions.artifacts import text_digest
from tuneloop.train.fit.checkpoints import CheckpointStore

_RECORD = "run.json"
_LOCK = "lock"
_MOMENT_S = 1.0  # past what looking into a folder takes; a training takes longer
# Refuse an unfinished run, go on with it, throw it away; or go on with one if there is one, as a worker does.
Begin = Literal["new", "resume", "fresh", "either"]


class RunRecord(BaseModel):
    """Which MLflow run the folder belongs to, and whether that one is still open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mlflow_run_id: str
    open: bool = True
    request_id: str | None = None  # of a retraining


class RunFolder:
    """One run's folder, held by this process."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say

    @property
    def checkpoints(self) -> Path:
        """Where they lie."""
        return self.path / "checkpoints"

    def store(self, keep: int) -> CheckpointStore:
        """Its checkpoints."""
        return CheckpointStore(self.checkpoints, keep, self._say)

    @property
    def record(self) -> RunRecord | None:
        """The MLflow run it belongs to; none before one was begun, or where the file was spoilt."""
        try:
            return RunRecord.model_validate_json((self.path / _RECORD).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, record: RunRecord) -> None:
        """Remember it, whole or not at all."""
        write_atomically(self.path / _RECORD, f"{record.model_dump_json()}\n".encode())

    def remove(self) -> None:
        """The run is finished, or nothing of it is worth keeping."""
        shutil.rmtree(self.path, ignore_errors=True)


def run_key(*parts: str) -> str:
    """What names a run: the digest of everything that decides what it trains."""
    return text_digest("\n".join(parts)).removeprefix("sha256:")[:24]


@contextmanager
def held_run(
    home: Path,
    key: str,
    begin: Begin,
    *,
    say: Callable[[str], None],
    close: Callable[[str], None],
    pause: Callable[[float], object] = sleep,
) -> Iterator[RunFolder]:
    """The run's folder, locked for as long as the block runs.

    Args:
        home: the state folder.
        key: from `run_key`.
        begin: what to do with an unfinished run of the same key.
        say: told what was found.
        close: closes an MLflow run as killed.
        pause: waits for whoever is in the folder for a moment, to look what may be removed or closed.

    Raises:
        Conflict: another process is at this run.
        InvalidInput: there is an unfinished run and `begin` is `new`.
    """
    runs = home / "runs"
    _close_dead_runs(runs, key, close)
    path = runs / key
    with ExitStack() as stack:
        held = stack.enter_context(_lock(path))
        if not held:
            pause(_MOMENT_S)
            held = stack.enter_context(_lock(path))
        if not held:
            raise Conflict(f"another process is training this very run ({path}); wait for it, or stop it")
        folder = RunFolder(path, say)
        unfinished = folder.store(keep=1).newest_valid() if begin != "fresh" else None
        if unfinished is not None and unfinished.state.is_as_begun:
            unfinished = None
        if unfinished is not None and begin == "new":
            raise InvalidInput(
                f"an unfinished run of this recipe, data and base stopped after step {unfinished.state.step}: give "
                f"--resume to go on with it, or --fresh to throw it away and begin anew ({path})"
            )
        if unfinished is None:
            if begin == "resume":
                say("there is no checkpoint to resume from; the run begins anew")
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
            if (old := folder.record) is not None and old.open:
                close(old.mlflow_run_id)
            (path / _RECORD).unlink(missing_ok=True)
        yield folder


def remove_ended(home: Path, is_over: Callable[[str], bool]) -> None:
    """Remove what retrainings left whose request is over: nobody goes on with them.

    A folder whose MLflow run is still open waits until the next run that starts has closed it.
    """
    for path in (home / "runs").glob("*"):
        with _lock(path) as held:
            left = _unheard(path).record if held else None
        if left is None or left.open or left.request_id is None or not is_over(left.request_id):
            continue
        with _lock(path) as held:
            folder = _unheard(path)
            if held and folder.record == left:
                folder.remove()


def _close_dead_runs(runs: Path, but: str, close: Callable[[str], None]) -> None:
    """Close the MLflow runs of processes that died; their checkpoints stay.

    No folder is held while MLflow is asked, which may take minutes: who wants to go on with it would be refused.
    """
    for path in runs.glob("*"):
        if path.name == but or (left := _left_open(path)) is None:
            continue
        close(left.mlflow_run_id)
        if path.is_dir():  # otherwise somebody went on with it meanwhile, and finished
            with _lock(path) as held:
                folder = _unheard(path)
                if held and folder.record == left:
                    folder.write(left.model_copy(update={"open": False}))


def _left_open(path: Path) -> RunRecord | None:
    """The record of a folder that nobody holds and whose MLflow run is open."""
    with _lock(path) as held:
        record = _unheard(path).record if held else None
        return record if record is not None and record.open else None


def _unheard(path: Path) -> RunFolder:
    return RunFolder(path, lambda _line: None)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether this process is the only one in the folder, for as long as the block runs."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
