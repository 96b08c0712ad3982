"""What could not be stored because the database was away: JSON lines on disk, fsynced before they count, replayed when
it is back.

Files are appended to, taken whole for a replay, and deleted once each of their lines is in the database or set aside;
inserting a row twice keeps the first, so a crash in between repeats work and loses nothing. A torn last line was never
acknowledged and is passed over. Lines set aside are tried again after a start, maybe of a version that can read them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from tuneloop.registry.files import sync
from tuneloop.registry.nouns import Noun
from tuneloop.serve.gateway.link import cause_of

log = logging.getLogger(__name__)
NounT = TypeVar("NounT", bound=Noun)
_MAX_FILE_BYTES = 16_000_000


class Spool(Generic[NounT]):
    """One kind of noun, in files `<kind>-<time>.jsonl` of one folder; safe to share between threads.

    What is set aside lies in `<kind>.aside`.
    """

    def __init__(self, folder: Path, kind: str, noun: type[NounT]) -> None:
        self._folder = folder
        self._kind = kind
        self._noun = noun
        self._lock = threading.Lock()
        self._file: FileIO | None = None

    def append(self, items: Sequence[NounT]) -> None:
        """Store items; once this returns they survive kill -9 and power loss.

        Raises:
            OSError: the disk refuses.
        """
        lines = b"".join(map(line_of, items))
        with self._lock:
            file = self._file or self._new_file()
            try:
                _write_durably(file, lines)
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

    def read(self, path: Path) -> Iterator[NounT | bytes]:
        """The items of one file; a line that cannot be read comes as it is, a torn last one not at all.

        Raises:
            OSError: the disk does not give it.
        """
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield self._noun.model_validate_json(line)
                except ValidationError as error:
                    torn = not line.endswith(b"\n")
                    log.error("%s:%d %s: %s", path, number, "is torn" if torn else "cannot be read", cause_of(error))
                    if not torn:
                        yield line

    def set_aside(self, lines: Iterable[bytes]) -> None:
        """Keep lines that no replay can bring in, for somebody to look at.

        Raises:
            OSError: the disk refuses.
        """
        path = self._aside
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            _write_durably(file, b"".join(lines))
        sync(self._folder)

    def try_aside_again(self) -> None:
        """Let the next replay try what was set aside."""
        with self._lock:
            if self._aside.exists():
                log.warning("what was set aside in %s is tried again", self._aside)
                self._aside.rename(self._new_path())

    def close(self) -> None:
        """Close the file that is open."""
        with self._lock:
            self._close()

    def _new_file(self) -> FileIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._new_path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        sync(self._folder)
        return self._file

    def _new_path(self) -> Path:
        return self._folder / f"{self._kind}-{time.time_ns():020d}.jsonl"

    @property
    def _aside(self) -> Path:
        return self._folder / f"{self._kind}.aside"

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def line_of(item: Noun) -> bytes:
    """An item as it stands in a file."""
    return item.model_dump_json().encode() + b"\n"


def _write_durably(file: FileIO, lines: bytes) -> None:
    """Append all of it, or, as far as the disk lets it, nothing."""
    before = os.fstat(file.fileno()).st_size
    try:
        if file.write(lines) != len(lines):
            raise OSError(f"the disk took only a part of {len(lines)} bytes")
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), before)  # what is refused is told as refused, and must not be half there
        raise
