"""Checkpoints that a kill cannot spoil: written beside, flushed, digests last, then renamed; read only when whole.

A folder `step-00000120` holds what transformers' Trainer saved (weights as safetensors, optimizer, scheduler, random
states), `tuneloop.json` (`RunState`, what only we know) and `manifest.json` with the sha256 of each file. Whatever
lacks a file or differs from its digest is named and skipped. The optimizer's and scheduler's files are torch pickles:
private to the run, compared with their digests first, and loaded by transformers with `weights_only`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tuneloop.registry.files import sync
from tuneloop.registry.versions.artifacts import file_digest

_MANIFEST = "manifest.json"
_STATE = "tuneloop.json"
_STAGING = ".writing"  # a name that is never read back


class Validated(BaseModel):
    """The validation loss after a step, in nats per token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    loss: float


class RunState(BaseModel):
    """What a run has found out about itself, beside what transformers keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    micro_batch: int  # rows per forward pass that fitted so far
    learning_rate: float  # the peak, lowered by rollbacks
    rollbacks: int = 0
    validation_batch: int | None = None  # rows at a time, where as many as usual did not fit
    validations: tuple[Validated, ...] = ()

    @property
    def is_as_begun(self) -> bool:
        """Whether to begin anew is the same: no step was taken, nor taken back."""
        return self.step == 0 and self.rollbacks == 0

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss."""
        return min(self.validations, key=lambda point: point.loss).step if self.validations else None

    def with_no_more_than(self, micro_batch: int, validation_batch: int | None) -> RunState:
        """The same with at most so many rows at a time; `validation_batch` None: as many as it says."""
        known = [rows for rows in (self.validation_batch, validation_batch) if rows is not None]
        sizes = {"micro_batch": min(self.micro_batch, micro_batch), "validation_batch": min(known, default=None)}
        return self.model_copy(update=sizes)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    state: RunState


class CheckpointStore:
    """The checkpoints of one run, `keep` of them and the best."""

    def __init__(self, folder: Path, keep: int, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._keep = keep
        self._say = say
        self._spoilt: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def staging(self) -> Path:
        """Where the trainer writes; nothing here counts until it is sealed."""
        return self._folder / _STAGING

    def clear(self) -> None:
        """Throw every checkpoint away: a run begins anew."""
        shutil.rmtree(self._replaced, ignore_errors=True)
        for folder in self._steps():
            shutil.rmtree(folder)

    def discard_staging(self) -> None:
        """Throw away what an interrupted write left."""
        self._take_back()
        shutil.rmtree(self.staging, ignore_errors=True)

    def seal(self, written: Path, state: RunState, best_step: int | None = None) -> Checkpoint:
        """Make a written folder a checkpoint, whole or not at all, and drop those that are no longer kept.

        Raises:
            OSError: the disk is full or refuses; the checkpoints before this one are as they were.
        """
        (written / _MANIFEST).unlink(missing_ok=True)  # of the checkpoint this is a copy of: it is no part of this one
        (written / _STATE).write_text(state.model_dump_json(indent=1) + "\n", encoding="utf-8")
        files = sorted(path for path in written.rglob("*") if path.is_file())
        for path in files:
            sync(path)
        digests = {path.relative_to(written).as_posix(): file_digest(path) for path in files}
        (written / _MANIFEST).write_text(json.dumps({"files": digests}, indent=1) + "\n", encoding="utf-8")
        sync(written / _MANIFEST)
        for folder in {path.parent for path in files}:
            sync(folder)
        target = self._folder / f"step-{state.step:08d}"
        self._take_back()
        if target.exists():  # the same step again, after a rollback or with another micro-batch
            target.rename(self._replaced)
        written.rename(target)
        sync(self._folder)
        shutil.rmtree(self._replaced, ignore_errors=True)
        self._prune(best_step)
        return Checkpoint(target, state)

    def newest_valid(self) -> Checkpoint | None:
        """The last whole checkpoint; those after it that are spoilt are named."""
        self._take_back()
        for folder in self._steps():
            found = self._read(folder)
            if found is not None:
                return found
        return None

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint of this step, if it is there and whole."""
        self._take_back()
        folder = self._folder / f"step-{step:08d}"
        return self._read(folder) if folder.is_dir() else None

    @property
    def _replaced(self) -> Path:
        """Where the checkpoint of a step lies while the next one of the same step is put in its place."""
        return self._folder / f"{_STAGING}-replaced"

    def _take_back(self) -> None:
        """See to what a kill left there: its place is still empty, or what replaced it is whole."""
        if not self._replaced.is_dir():
            return
        try:
            state = RunState.model_validate_json((self._replaced / _STATE).read_bytes())
        except (OSError, ValidationError):
            state = None
        target = self._folder / f"step-{state.step:08d}" if state else None
        if target is not None and not target.exists():
            with suppress(FileNotFoundError):  # another process of the run was first
                self._replaced.rename(target)
            sync(self._folder)
        else:
            shutil.rmtree(self._replaced, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"), reverse=True)

    def _read(self, folder: Path) -> Checkpoint | None:
        reason = _what_is_wrong(folder)
        if reason is None:
            return Checkpoint(folder, RunState.model_validate_json((folder / _STATE).read_bytes()))
        if folder not in self._spoilt:
            self._spoilt.add(folder)
            self._say(f"checkpoint {folder.name} is skipped: {reason}")
        return None

    def _prune(self, best_step: int | None) -> None:
        best = f"step-{best_step:08d}" if best_step is not None else None
        for folder in self._steps()[self._keep :]:
            if folder.name != best:
                shutil.rmtree(folder, ignore_errors=True)


def _what_is_wrong(folder: Path) -> str | None:
    try:
        digests = json.loads((folder / _MANIFEST).read_bytes())["files"]
        for name, digest in digests.items():
            if file_digest(folder / name) != digest:
                return f"{name} is not what was written (its digest differs)"
        RunState.model_validate_json((folder / _STATE).read_bytes())
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ValidationError) as error:
        return f"it cannot be read ({error})"
    return None
