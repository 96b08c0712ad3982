"""The fields of a record that its slices are made of: who asked, how, when, and what answered. None holds words of a
user's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from tuneloop.monitor.slices import TIME_OF_DAY
from tuneloop.registry.nouns import RequestLine, version_name

_HOURS = 6
_LENGTHS = (1, 33, 129, 513, 2_049)  # tokens of a prompt, from which on it is another slice


def _time_of_day(record: RequestLine) -> str:
    first = record.at.hour // _HOURS * _HOURS
    return f"{first:02d}–{first + _HOURS:02d} UTC"


def _length(record: RequestLine) -> str | None:
    if record.prompt_tokens is None:
        return None
    place = max(bisect_right(_LENGTHS, record.prompt_tokens), 1)
    first = f"{_LENGTHS[place - 1]:,}"
    return f"{first} tokens or more" if place == len(_LENGTHS) else f"{first}–{_LENGTHS[place] - 1:,} tokens"


def _version(record: RequestLine) -> str | None:
    """Which answered, or was to."""
    version = record.served_version if record.served_version is not None else record.assigned_version
    return version_name(record.model, version) if version is not None else None


VERSION, ENGINE, API_KEY = "version", "engine", "API key"
FIELDS: dict[str, Callable[[RequestLine], str | None]] = {
    VERSION: _version,
    ENGINE: lambda r: r.engine,
    "endpoint": lambda r: r.endpoint,
    "streamed": lambda r: "yes" if r.stream else "no",
    TIME_OF_DAY: _time_of_day,
    "length of prompt": _length,
    API_KEY: lambda r: r.api_key,
}
