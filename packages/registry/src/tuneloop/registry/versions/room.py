"""Whether a disk has room for files, before a byte of them is written: a full one takes the database with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.registry.errors import Unavailable
from tuneloop.registry.versions.bounded import DEEPEST

if TYPE_CHECKING:
    from mlflow.entities import FileInfo

MARGIN_BYTES = 1 << 28  # that the database, on the same disk, goes on with


def is_room(wanted_bytes: int, into: Path) -> bool:
    """Whether so many bytes can be written into a folder, and something beside them."""
    return wanted_bytes + MARGIN_BYTES <= shutil.disk_usage(into).free


def expect_room(wanted_bytes: int, into: Path, what: str) -> None:
    """See that there is room for files.

    Args:
        wanted_bytes: what they take.
        into: the folder they are for.
        what: they are, for the message.

    Raises:
        Unavailable: there is none.
    """
    if not is_room(wanted_bytes, into):
        raise Unavailable(
            f"{what}, and what is needed beside it, take {wanted_bytes + MARGIN_BYTES} bytes, and {into} has "
            f"{shutil.disk_usage(into).free}; make room there, or set home to a folder on a larger disk"
        )


def listed_bytes(listed: Callable[[str | None], Sequence[FileInfo]], path: str | None) -> int | None:
    """What the files below a folder take, as an artifact store lists them; None: it does not tell of each.

    What is nested deeper than any model's files is not looked for.
    """
    found, waiting = 0, [(path, DEEPEST)]
    while waiting:
        here, deeper = waiting.pop()
        for one in listed(here):
            if one.is_dir:
                waiting += [(one.path, deeper - 1)] if deeper else []
            elif one.file_size is None:
                return None
            else:
                found += int(one.file_size)
    return found
