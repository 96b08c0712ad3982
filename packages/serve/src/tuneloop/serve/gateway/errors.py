"""Errors as OpenAI clients know them: `{"error": {"message", "type", "param", "code"}}` with a status and, where it
helps, Retry-After.

The types are OpenAI's own: `invalid_request_error` for what the client must change, `server_error` for what it may
try again.
"""

from __future__ import annotations

import msgspec

from tuneloop.registry.errors import TuneloopError

CLIENT_CLOSED_REQUEST = 499


class ApiError(TuneloopError):
    """A request that is answered with an error; the message is for the one who wrote the request."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        """The JSON body."""
        return error_body(self.status, self.message, code=self.code, param=self.param)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that belong to this error alone."""
        found = []
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.status in {408, 413}:
            found.append((b"connection", b"close"))  # the rest of the body is not read
        return found


def error_body(status: int, message: str, *, code: str | None, param: str | None = None) -> bytes:
    """The OpenAI-shaped JSON of an error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the client must change its request."""
    return ApiError(400, message, code=code, param=param)
