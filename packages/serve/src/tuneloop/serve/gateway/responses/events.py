"""One server-sent event of the Responses API: a line that names its type, a line with its JSON, which says it too."""

from __future__ import annotations

import msgspec

from tuneloop.serve.gateway.errors import ApiError


def data_of(raw: bytes) -> bytes | None:
    """The JSON of an event; None where it is a comment.

    Raises:
        ValueError: it is neither.
    """
    if raw.startswith(b"data: "):
        return raw[6:]
    at = raw.find(b"\ndata: ")
    if raw.startswith(b"event: ") and at > 0:
        return raw[at + 7 :]
    if raw.startswith(b":") and b"\n" not in raw:
        return None
    raise ValueError("an event that is no data")


def event_of(kind: str, data: dict[str, object]) -> bytes:
    """An event, without the blank line behind it."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data)


def error_event(error: ApiError, number: int) -> bytes:
    """What ends a stream that fails: as this API has it, with the `error` that clients of every endpoint know."""
    told = {"code": error.code, "message": error.message, "param": error.param}
    body = msgspec.json.decode(error.body)
    return event_of("error", {"type": "error", **told, "sequence_number": number, **body})
