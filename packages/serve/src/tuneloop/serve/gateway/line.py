"""One request of one connection: what uvicorn keeps of it, and what the hot path does with it beyond ASGI. That saves a
task, a timer, an event and the checking of our own headers for every request.

ASGI tells that a client has left only to somebody who waits for a message; a line calls. It hands over a body that is
here already without a message, and writes an answer whose headers are known to be sound. All else goes through ASGI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Header: TypeAlias = tuple[bytes, bytes]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
LINE = "tuneloop.line"  # its key in an ASGI scope


class Line(RequestResponseCycle):
    """One request's way back to its client."""

    def __init__(self, protocol: HttpToolsProtocol, scope: Any, *, keep_alive: bool) -> None:
        # uvicorn's own would be given an event, which only those wait for who are still sent their body.
        self.scope = scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger, self.access_logger, self.access_log = protocol.logger, protocol.access_logger, False
        self.default_headers = protocol.server_state.default_headers
        self.on_response = protocol.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = self.response_complete = False
        self.chunked_encoding = None
        self.expected_content_length = 0
        self.on_left: Callable[[], None] | None = None  # called when the client goes before its answer is complete
        self.why_left = "the client left"

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Let the application answer, then let go of what names itself, or the garbage collector must find each."""
        await super().run_asgi(app)
        del self.scope[LINE]  # type: ignore[misc]  # a key of ours, which uvicorn's type does not know

    @cached_property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]  # uvicorn sets it for every request
        """Set when there is more for somebody who waits for a message."""
        event = asyncio.Event()
        if self.body or not self.more_body:
            event.set()
        return event

    def arrived(self, body: bytes) -> None:
        """A piece of the request's body is here."""
        self.body += body
        if "message_event" in self.__dict__:
            self.message_event.set()

    def arrived_whole(self) -> None:
        """All of it is here."""
        self.more_body = False
        if "message_event" in self.__dict__:
            self.message_event.set()

    def left(self) -> None:
        """The connection is lost."""
        if self.on_left is not None:
            self.on_left()

    def whole_body(self) -> bytes | None:
        """The request's body if all of it is here; None: wait for it as ASGI says."""
        if self.more_body or self.disconnected:
            return None
        body = bytes(self.body)
        self.body = bytearray()
        self.flow.resume_reading()
        return body

    @property
    def stalled(self) -> bool:
        """Whether the client does not read what was sent to it, so that sending more would wait."""
        return self.flow.write_paused

    async def begin(self, headers: Iterable[Header], first: bytes) -> None:
        """Write the head of a 200 and the first piece of a body of unknown length; the rest follows through ASGI.

        The headers must be lower case, without line breaks, and none that HTTP itself is about.
        """
        if await self.drained():
            self.chunked_encoding = True
            self._write(headers, b"transfer-encoding: chunked\r\n", b"%x\r\n%s\r\n" % (len(first), first))

    def more(self, data: bytes) -> None:
        """Write another piece after `begin`, at once; ask `stalled` before it."""
        if not self.disconnected:
            self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def drained(self) -> bool:
        """Wait until the client has read most of what was sent to it, or is gone; whether it is still there."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        return not self.disconnected

    async def answer(self, headers: Iterable[Header], body: bytes) -> None:
        """Write a whole 200, in one piece: a write is the dearest thing that is done for a request."""
        if self.disconnected or (self.stalled and not await self.drained()):
            return
        self.chunked_encoding = False
        self._write(headers, b"content-length: %d\r\n" % len(body), body)
        if self.stalled and not await self.drained():  # it keeps its turn: who reads nothing would else gather answers
            return
        self.response_complete = True
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _write(self, headers: Iterable[Header], framing: bytes, body: bytes) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        parts = [b"HTTP/1.1 200 OK\r\n"]
        for name, value in (*self.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        parts += (framing, b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", body)
        self.transport.write(b"".join(parts))
