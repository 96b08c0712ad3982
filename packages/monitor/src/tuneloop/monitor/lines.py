"""Reading `{"text": …, "at": …, …}` lines, of any number in bounded memory.

Of a file longer than what is asked for, a sample is kept: the lines whose digests are smallest. The same file always
gives the same sample, every line is as likely to be in it as any other, and equal texts are drawn independently.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from tuneloop.monitor.features import READ_CHARS
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.files import cannot_read

Scalar = str | bool | int | float


@dataclass(frozen=True)
class Line:
    """A text with what its line says of it."""

    number: int  # of the line, from 1
    text: str  # its first READ_CHARS characters
    at: datetime | None = None
    fields: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Lines of a file, in its order."""

    lines: tuple[Line, ...]
    total: int  # texts the file holds

    @property
    def texts(self) -> list[str]:
        """The texts alone."""
        return [line.text for line in self.lines]


def read_sample(path: Path, most: int) -> Sample:
    """All lines of a JSONL file, or `most` of them at random.

    Raises:
        InvalidInput: the file cannot be read, or a line of it is no such line; names file and line.
    """
    kept: list[tuple[int, int, Line]] = []  # the smallest digests, the largest of them first
    total = 0
    for line in _lines(path):
        total += 1
        key = -int.from_bytes(sha256(f"{line.number}\0{line.text}".encode()).digest()[:8])
        if len(kept) < most:
            heapq.heappush(kept, (key, line.number, line))
        elif key > kept[0][0]:
            heapq.heapreplace(kept, (key, line.number, line))
    return Sample(tuple(line for _, _, line in sorted(kept, key=lambda entry: entry[1])), total)


def _lines(path: Path) -> Iterator[Line]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:  # a text may hold the other line separators
            for number, raw in enumerate(stream, 1):
                if raw.strip():
                    yield _line(path, number, raw)
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error, 'give a file of {"text": …} lines') from None


def _line(path: Path, number: int, raw: str) -> Line:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:  # RecursionError: nested without end
        raise InvalidInput(f"{path}:{number}: not JSON: {getattr(error, 'msg', error)}") from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(f'{path}:{number}: no text here; each line is {{"text": "…"}}')
    try:
        raw_fields = json.dumps(row, ensure_ascii=False)
        raw_fields.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{path}:{number}: holds half a surrogate pair, which is no text") from None
    fields = {name: value for name, value in row.items() if name not in {"text", "at"} and _is_scalar(value)}
    return Line(number, text[:READ_CHARS], _time(path, number, row.get("at")), fields)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value))


def _time(path: Path, number: int, value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise InvalidInput(
            f'{path}:{number}: "at" is {str(value)[:40]!r}, which is no time; write 2026-11-29T20:15:00Z'
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
