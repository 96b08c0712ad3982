"""The processes of a fit as the operating system has them: how they are started, what they read of the environment, and
what becomes of the errors they write, where the disk may be full.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

_SHOWN_LINES = 20


@contextmanager
def started(
    command: Sequence[str], device: str, log: Path, *, parallel: bool
) -> Iterator[tuple[subprocess.Popen[str], deque[str]]]:
    """The children, in a group of their own: a Ctrl-C reaches only the owner, who asks them to save first.

    The last lines of what they write to standard error are given, all of them go into `log`. Of several that are
    `parallel` each takes one thread, unless the environment says more; a single one has the whole machine.
    """
    environment = dict(os.environ) | ({"DS_ACCELERATOR": "cpu"} if device == "cpu" else {})
    if parallel:
        environment.setdefault("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",  # what a library writes must not end the run
        env=environment,
        start_new_session=True,
    )
    errors: deque[str] = deque(maxlen=_SHOWN_LINES)

    def read(stream: IO[str]) -> None:
        with _kept_log(log) as keep:
            for line in stream:  # whatever becomes of the file: children whose pipe is full wait for ever
                errors.append(line.rstrip())
                keep(line)

    assert process.stderr is not None
    reader = threading.Thread(target=read, args=(process.stderr,))
    reader.start()
    try:
        yield process, errors
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()
        process.stderr.close()


@contextmanager
def _kept_log(path: Path) -> Iterator[Callable[[str], None]]:
    """Appends lines to a file for as long as that can be done; on a full disk they are gone."""
    with ExitStack() as held:
        file: IO[str] | None = None
        with suppress(OSError):
            file = held.enter_context(path.open("a", encoding="utf-8", buffering=1))

        def keep(line: str) -> None:
            nonlocal file
            if file is None:
                return
            try:
                file.write(line)
            except OSError:
                file = None
                with suppress(OSError):  # what it still holds cannot be written either
                    held.close()

        yield keep
