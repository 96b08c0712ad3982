"""Files of somebody else, copied to where nobody else can change them: what is looked at is what is registered.

Whoever may write a folder, or MLflow's store of artifacts, can change it at any moment, also between a check and an
upload. No link is followed at any depth, and what is no regular file is not opened. The copy costs nothing where the
file system shares blocks (reflinks); elsewhere it takes as much room as the files, until they are registered.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.versions.bounded import DEEPEST, entries
from tuneloop.registry.versions.room import expect_room, is_room

_log = logging.getLogger(__name__)
_ROOT = "registering"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe in a file's place would be waited for
_PIECE = 1 << 24
_CLONE = 0x40049409  # Linux's FICLONE: a file of the same blocks
_CHANGED = (errno.ELOOP, errno.ENOTDIR, errno.ENOENT)  # what was there a moment ago is something else now


@contextmanager
def private_folder(home: Path) -> Iterator[Path]:
    """An empty folder that only this user can enter, on the home's disk, until the block ends.

    One whose process was killed is removed by whoever comes next: a lock that ends with its process tells them apart.
    """
    root = home / _ROOT
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        for left in root.iterdir():
            _remove_unheld(left)
        made = Path(tempfile.mkdtemp(dir=root))
        held = os.open(made, _FOLDER)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        try:
            _remove(made)
        finally:
            os.close(held)


def copied(folder: Path, into: Path, *, below: Path | None, called: str) -> Path:
    """Copy a folder's regular files; the copy, of the same name.

    Args:
        folder: what to copy.
        into: where to.
        below: a folder that is trusted; from there to `folder`, too, no link is followed. None: `folder` is.
        called: the source, for messages.

    Raises:
        InvalidInput: it holds a link or something that is no file, or changed while it was copied.
        Unavailable: it cannot be read, or there is no room for it.
    """
    target = into / (folder.name or "files")
    target.mkdir()
    try:
        _expect_room(folder, into, called)
        opened = _opened(folder, below or folder)
        try:
            _copy(opened, target)
        finally:
            os.close(opened)
    except Unavailable:
        raise
    except OSError as error:
        if error.errno in _CHANGED:
            raise InvalidInput(
                f"{called}: {error.filename} is a link, or was changed meanwhile; register what nobody writes to"
            ) from None
        raise Unavailable(
            f"{called} cannot be copied into {into.parent}: {error}; see whether it can be read, and there is room"
        ) from error
    return target


def _expect_room(folder: Path, into: Path, called: str) -> None:
    """Refuse what would fill the disk before the first byte of it is copied.

    Raises:
        Unavailable: there is no room for a copy.
    """
    sizes = {path: found.st_size for path in entries(folder, called) if stat.S_ISREG((found := path.lstat()).st_mode)}
    wanted_bytes = sum(sizes.values())
    if sizes and not is_room(wanted_bytes, into) and not _shares_blocks(max(sizes, key=sizes.__getitem__), into):
        expect_room(wanted_bytes, into.parent, f"{called}: a copy")


def _shares_blocks(file: Path, into: Path) -> bool:
    """Whether a copy takes no room."""
    source = os.open(file, _FILE)
    try:
        with tempfile.TemporaryFile(dir=into) as probe:
            fcntl.ioctl(probe, _CLONE, source)
            return True
    except OSError:  # not on these file systems
        return False
    finally:
        os.close(source)


def _remove(folder: Path) -> None:
    """Remove a folder, however deep its folders are nested: they are all brought to its top first.

    What cannot be removed is left to the next registration: the work that is done, or the error, is not lost over it.
    """
    try:
        with os.scandir(folder) as found:
            waiting = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
        while waiting:
            with os.scandir(waiting.pop()) as found:
                inner = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
            for path in inner:
                waiting.append(tempfile.mkdtemp(dir=folder))
                Path(path).replace(waiting[-1])
        shutil.rmtree(folder)
    except FileNotFoundError:
        return  # its owner is just doing so
    except OSError as error:
        _log.warning("%s cannot be removed: %s; the next registration tries again", folder, error)


def _opened(folder: Path, below: Path) -> int:
    """A descriptor of the folder, reached from a trusted one without a link."""
    here = os.open(below, os.O_RDONLY | os.O_DIRECTORY)
    for part in folder.relative_to(below).parts:
        try:
            deeper = os.open(part, _FOLDER, dir_fd=here)
        finally:
            os.close(here)
        here = deeper
    return here


def _copy(folder: int, target: Path, deeper: int = DEEPEST) -> None:
    for name in sorted(os.listdir(folder)):
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) and deeper:
            opened = os.open(name, _FOLDER, dir_fd=folder)
            try:
                (target / name).mkdir()
                _copy(opened, target / name, deeper - 1)
            finally:
                os.close(opened)
            continue
        if not stat.S_ISREG(mode):
            raise OSError(errno.ELOOP, "no regular file", name)
        opened = os.open(name, _FILE, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise OSError(errno.ELOOP, "no regular file", name)
            _copy_file(opened, target / name)
        finally:
            os.close(opened)


def _copy_file(source: int, target: Path) -> None:
    """As many bytes as there are now: a file that somebody goes on writing to would have no end."""
    left = os.fstat(source).st_size
    copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        while left > 0:
            try:
                done = os.copy_file_range(source, copy, left)
            except OSError as error:
                if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                    raise
                done = 0
            if done == 0 and (piece := os.read(source, min(left, _PIECE))):  # not between these file systems
                done = os.write(copy, piece)
                if done < len(piece):
                    os.lseek(source, done - len(piece), os.SEEK_CUR)
            if done == 0:
                return  # it was cut short meanwhile: whoever reads the copy finds that out
            left -= done
    finally:
        os.close(copy)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_unheld(folder: Path) -> None:
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError as error:
        if error.errno in _CHANGED:  # its owner has just removed it
            return
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        _remove(folder)
    finally:
        os.close(descriptor)
