"""The demo's state folder, emptied for a new run: only a folder that the demo itself filled loses anything.

A marker file, written before anything else and never removed, says that the folder is the demo's. The converted base
model stays.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click

MARKER = ".tuneloop-demo"
KEPT = {MARKER, "bases"}


def empty_home(home: Path) -> None:
    """Make the folder, or empty the one a demo before this left.

    Raises:
        click.ClickException: it holds something and no demo made it, or it cannot be emptied; nothing else was removed.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        found = [path for path in home.iterdir() if path.name not in KEPT]
        if found and not (home / MARKER).exists():
            raise click.ClickException(
                f"{home} holds {found[0].name} and was not made by the demo, which empties its folder: give --home a "
                f"new or empty folder, or remove {home} yourself if nothing in it is needed"
            )
        (home / MARKER).write_text("Made by `tuneloop demo`, which empties this folder at its next run.\n")
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise click.ClickException(
            f"{error.filename or home} cannot be made or emptied ({error.strerror}); give --home a folder of yours"
        ) from None


def look_again(home: Path) -> str:
    """What to type to see with any verb what the demo left there."""
    return f"export TUNELOOP_HOME={shlex.quote(str(home))}; tuneloop alerts --all"
