"""What the hot path knows of its connection beyond ASGI. It saves a task, a timer and the checking of our own headers
for every request.

ASGI tells that a client has left only to somebody who waits for a message; a line calls. It hands over a body that is
here already without a message, and writes the head of an answer whose headers are known to be sound. All else, the
bodies and the end of an answer too, goes through ASGI.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

Header: TypeAlias = tuple[bytes, bytes]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LINE = "tuneloop.line"  # its key in an ASGI scope


class Line:
    """One request's way back to its client."""

    __slots__ = ("_cycle", "on_left", "why_left")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self.on_left: Callable[[], None] | None = None  # called when the client goes before its answer is complete
        self.why_left = "the client left"

    def left(self) -> None:
        """The connection is lost."""
        if self.on_left is not None:
            self.on_left()

    def body(self) -> bytes | None:
        """The request's body if all of it is here; None: wait for it as ASGI says."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        cycle.flow.resume_reading()
        return body

    @property
    def stalled(self) -> bool:
        """Whether the client does not read what was sent to it, so that sending more would wait."""
        return self._cycle.flow.write_paused

    async def begin(self, headers: Iterable[Header], first: bytes) -> None:
        """Write the head of a 200 and the first piece of a body of unknown length; the rest follows through ASGI.

        The headers must be lower case, without line breaks, and none that HTTP itself is about.
        """
        cycle = self._cycle
        cycle.chunked_encoding = True
        cycle.expected_content_length = 0
        await self._write(headers, b"transfer-encoding: chunked\r\n", b"%x\r\n%s\r\n" % (len(first), first))

    def more(self, data: bytes) -> None:
        """Write another piece after `begin`, at once; ask `stalled` before it."""
        cycle = self._cycle
        if not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def drained(self) -> None:
        """Wait until the client has read most of what was sent to it, or is gone."""
        if not self._cycle.disconnected:
            await self._cycle.flow.drain()

    async def answer(self, send: Send, headers: Iterable[Header], body: bytes) -> None:
        """Write a whole 200, in one piece: a write is the dearest thing that is done for a request."""
        cycle = self._cycle
        cycle.chunked_encoding = False
        cycle.expected_content_length = 0
        await self._write(headers, b"content-length: %d\r\n" % len(body), body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})  # uvicorn's end of an answer

    async def _write(self, headers: Iterable[Header], framing: bytes, body: bytes) -> None:
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        parts = [b"HTTP/1.1 200 OK\r\n"]
        parts += [b"%s: %s\r\n" % header for header in (*cycle.default_headers, *headers)]
        parts += (framing, b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n", body)
        cycle.transport.write(b"".join(parts))
