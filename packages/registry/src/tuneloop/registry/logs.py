"""How processes log: lines for a terminal, or one JSON object a line for what collects logs.

An object holds the time, level, logger and message, what the process is (`gateway_id`), the request where the line is
about one, and of an exception its types and places. What an exception says is left out: it may quote a client's text.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

LogFormat = Literal["text", "json"]
_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_OF_ONE_LINE = ("request_id",)  # what a line may bring as `extra`
_MOST_CHARS = 4_000  # of a message
_MOST_PLACES = 20  # of an exception, the innermost
_MOST_CAUSES = 5


def set_up(form: LogFormat, **fields: str) -> None:
    """Log to standard error from INFO on; `fields` stand in every JSON object."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(fields) if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """One object a line, whatever is in the message: JSON escapes line ends."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:_MOST_CHARS],
            **self._fields,
        }
        line |= {name: str(value) for name in _OF_ONE_LINE if (value := getattr(record, name, None)) is not None}
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _told(record.exc_info[1])
        return json.dumps(line)


def _told(error: BaseException) -> dict[str, list[str]]:
    """Types, the error's own first, then those of its causes; and where it came from, the innermost place last."""
    types, one = list[str](), error
    while len(types) < _MOST_CAUSES:
        types.append(type(one).__qualname__)
        before = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        if before is None:
            break
        one = before
    frames = traceback.extract_tb(error.__traceback__)[-_MOST_PLACES:]
    return {"types": types, "places": [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]}
