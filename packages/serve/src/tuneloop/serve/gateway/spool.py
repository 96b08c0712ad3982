"""What could not be stored because the database was away: JSON lines on disk, fsynced before they count, replayed when
it is back.

Files are appended to, taken whole for a replay, and deleted once the database has their rows; inserting a row twice
keeps the first, so a crash in between repeats work and loses nothing. A torn last line was never acknowledged and is
passed over.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from tuneloop.registry.nouns import Noun
from tuneloop.serve.files import sync_folder

log = logging.getLogger(__name__)
NounT = TypeVar("NounT", bound=Noun)
_MAX_FILE_BYTES = 16_000_000


class Spool(Generic[NounT]):
    """One kind of noun, in files `<kind>-<time>.jsonl` of one folder; safe to share between threads."""

    def __init__(self, folder: Path, kind: str, noun: type[NounT]) -> None:
        self._folder = folder
        self._kind = kind
        self._noun = noun
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, items: Sequence[NounT]) -> None:
        """Store items; once this returns they survive kill -9 and power loss.

        Raises:
            OSError: the disk refuses.
        """
        lines = b"".join(item.model_dump_json().encode() + b"\n" for item in items)
        with self._lock:
            file = self._file or self._new_file()
            try:
                if file.write(lines) != len(lines):
                    raise OSError(f"the disk took only a part of {len(lines)} bytes")
                os.fsync(file.fileno())
            except OSError:
                self._close()  # the next append begins a file that has no torn line
                raise
            if os.fstat(file.fileno()).st_size > _MAX_FILE_BYTES:
                self._close()

    def waiting(self) -> list[Path]:
        """Files to replay, the oldest first; later appends go to a new one."""
        with self._lock:
            self._close()
            return sorted(self._folder.glob(f"{self._kind}-*.jsonl"))

    def read(self, path: Path) -> Iterator[NounT]:
        """The items of one file; a line that cannot be read is logged and passed over."""
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield self._noun.model_validate_json(line)
                except ValidationError as error:
                    log.error("%s:%d is passed over: %s", path, number, error.errors()[0]["msg"])

    def close(self) -> None:
        """Close the file that is open."""
        with self._lock:
            self._close()

    def _new_file(self) -> FileIO:
        path = self._folder / f"{self._kind}-{time.time_ns():020d}.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        sync_folder(self._folder)
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
