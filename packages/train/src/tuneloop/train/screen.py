"""What a run tells the person watching: lines, and on a terminal one line that is rewritten in place."""

from __future__ import annotations

import sys
from typing import TextIO


class Screen:
    """Lines to a stream (standard error when standard output carries JSON)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._open_line = False

    def say(self, line: str = "") -> None:
        """A line that stays."""
        if self._open_line:
            self._stream.write("\n")
            self._open_line = False
        self._stream.write(line + "\n")
        self._stream.flush()

    def progress(self, line: str, *, keep: bool) -> None:
        """A line that the next one replaces on a terminal; elsewhere it is written only with `keep`."""
        if self._live:
            self._stream.write("\r\x1b[2K" + line)
            self._stream.flush()
            self._open_line = True
        elif keep:
            self.say(line)

    def end_progress(self) -> None:
        """Take the rewritten line away."""
        if self._open_line:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._open_line = False
