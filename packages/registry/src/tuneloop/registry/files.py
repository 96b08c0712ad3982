"""Writes that are there whole or not at all, and still there after a crash: temporary file, fsync, rename, fsync of the
folder. What goes wrong on the way leaves the old file, and nothing beside it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tuneloop.registry.errors import InvalidInput

OWNER_ONLY = 0o600
_AS_UMASK_SAYS = 0o666
_MOST_TEXT = 2**20


def write_atomically(path: Path, content: bytes, *, mode: int = _AS_UMASK_SAYS) -> None:
    """Replace a file by one with this content.

    Args:
        path: the file; its folder must be there.
        content: all of it.
        mode: its permissions, less what the umask takes.
    """
    with replacing(path, mode=mode) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, *, mode: int = _AS_UMASK_SAYS) -> Iterator[BinaryIO]:
    """A file to write piece by piece, that replaces `path` when the block ends well; a link's target, if it is one.

    Raises:
        OSError: it cannot be written; or a folder or a device is there, which a file must not replace.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def read_text(path: Path, *, most_bytes: int = _MOST_TEXT) -> str:
    """The text of a file that somebody wrote by hand.

    Raises:
        OSError: it cannot be read, or is larger than that: no such file is meant.
        UnicodeDecodeError: it is no UTF-8.
    """
    with path.open("rb") as file:
        found = file.read(most_bytes + 1)
    if len(found) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes} bytes", str(path))
    return found.decode("utf-8")


def cannot_read(path: Path, error: Exception, then: str) -> InvalidInput:
    """The one way to say that a file somebody named cannot be read: which, why, and what to do next."""
    match error:
        case UnicodeDecodeError():
            reason = "it is not UTF-8 text"
        case OSError():
            reason = error.strerror or str(error)
        case _:  # a ValueError: a NUL, or half a surrogate pair
            reason = "no file can have that name"
    return InvalidInput(f"cannot read {path}: {reason}; {then}")


def is_file(path: Path) -> bool:
    """Whether a file is there; where no file can have that name (too long, a NUL in it) none is."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
