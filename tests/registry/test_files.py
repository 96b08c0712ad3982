"""A file is replaced whole or not at all, and only its owner reads what is meant for its owner."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuneloop.registry.files import OWNER_ONLY, read_text, replacing, write_atomically


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o022)
    yield 0o022
    os.umask(before)


def _half() -> Iterator[bytes]:
    yield b"half of the new"
    raise KeyError("the other half")


def test_what_goes_wrong_on_the_way_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_atomically(path, b"old")
    with pytest.raises(KeyError, match="the other half"), replacing(path) as file:
        file.writelines(_half())
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("rows.jsonl", b"old")]


@pytest.mark.parametrize("whose", ["everybody's", "the owner's"])
def test_a_file_is_as_readable_as_was_asked(tmp_path: Path, umask: int, whose: str) -> None:
    path = tmp_path / "page.html"
    if whose == "everybody's":
        write_atomically(path, b"<p>")
    else:
        write_atomically(path, b"<p>", mode=OWNER_ONLY)
    assert path.stat().st_mode & 0o777 == (0o666 & ~umask if whose == "everybody's" else 0o600)


def test_the_file_and_its_name_are_on_the_disk_before_the_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_atomically(tmp_path / "run.json", b"{}")
    assert synced == [f".run.json.{os.getpid()}.{threading.get_ident()}", tmp_path.name]


def test_a_links_target_is_written_and_what_is_no_file_stays(tmp_path: Path) -> None:
    """As root a page would otherwise take the place of a device."""
    (tmp_path / "page.html").write_text("old")
    (tmp_path / "link.html").symlink_to("page.html")
    write_atomically(tmp_path / "link.html", b"new")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="it is no regular file"):
            write_atomically(place, b"new")
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(OSError, match="larger than 1048576 bytes"):
        read_text(Path("/dev/zero"))
