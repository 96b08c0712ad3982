"""Rows on disk instead of in memory, read back by their number: 8 bytes a row are held.

A store is a sequence like a tuple of rows: it can be gone through again and again, shuffled by index, and counted. Its
file is in a temporary folder (TMPDIR), as large as the rows' text, and goes away with the store.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.nouns import Message
from tuneloop.train.data.rows import Row


class Closable(Protocol):
    """A file, or a writer with one."""

    def close(self) -> object:
        """Write what is left, and let go of it."""


@contextmanager
def scratch_written(what: str) -> Iterator[None]:
    """Around writing to the temporary folder: what the disk refuses is one clear error.

    Raises:
        TuneloopError: it is full, or cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise TuneloopError(
            f"{what} could not be written to the temporary folder: {error}; free disk space there, or set TMPDIR to a "
            "folder with more, then begin again"
        ) from error


def close_scratch(file: Closable) -> None:
    """Close what is thrown away; what it could not write has been told."""
    with suppress(OSError):
        file.close()


class RowStore(Sequence[Row]):
    """Append-only while it is filled; then read. For one thread."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        with scratch_written("rows"):
            self._file = tempfile.TemporaryFile(prefix="tuneloop-rows-", buffering=1 << 20)  # noqa: SIM115 (lives as long as the store)
        weakref.finalize(self, close_scratch, self._file)
        self._starts = array("Q")
        self._end = 0
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Put a row at the end."""
        turns = [[turn.role, turn.content] for turn in row.messages]
        line = json.dumps([row.place, turns, row.input, row.rejected], ensure_ascii=False).encode() + b"\n"
        with scratch_written("rows"):
            self._file.seek(self._end)
            self._file.write(line)
        self._starts.append(self._end)
        self._end += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return Chosen(self, array("Q", range(len(self))[index]))
        self._file.seek(self._starts[index])
        return self._row(self._file.readline())

    def __iter__(self) -> Iterator[Row]:
        """In order; other reads may come between."""
        place = 0
        while place < self._end:
            self._file.seek(place)
            line = self._file.readline()
            place += len(line)
            yield self._row(line)

    @staticmethod
    def _row(line: bytes) -> Row:
        place, turns, extra, rejected = json.loads(line)
        messages = tuple(Message(role=role, content=content) for role, content in turns)
        return Row(messages, place, extra, rejected=rejected)


class Chosen(Sequence[Row]):
    """Some rows of another sequence, in an order of their own, a row as often as its number stands there."""

    def __init__(self, rows: Sequence[Row], order: Sequence[int] | NDArray[np.int64]) -> None:
        self._rows = rows
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return Chosen(self._rows, self._order[index])
        return self._rows[int(self._order[index])]


class Placed(Protocol):
    """What came from somewhere."""

    @property
    def place(self) -> str:
        """`file:line`."""


class PlacesOf(Sequence[str]):
    """Where each of some rows came from, looked up when it is asked for."""

    def __init__(self, rows: Sequence[Placed]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return PlacesOf(self._rows[index])
        return self._rows[index].place
