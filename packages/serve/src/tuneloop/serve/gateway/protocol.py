"""uvicorn's HTTP protocol, with an end to what a client may send before it has said who it is, and to how long it may
leave unread what it was sent.

httptools keeps a header however long it grows, and uvicorn every header of a request and every request that is sent
before the one before it is answered: without limits one connection without a key could fill the memory. And whoever
writes to a client that does not read waits, holding its turn and its engine, until the connection is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuneloop.serve.gateway.errors import error_body
from tuneloop.serve.gateway.line import LINE, Line

MAX_HEAD_BYTES = 65_536  # request line and headers; what one read of the socket brings may come on top
HEAD_TIMEOUT_S = 30.0  # from connecting, or from a later request's first byte, to the end of its head
MAX_WAITING = 16  # requests of one connection behind the one that is being answered


class TooManyWaiting(Exception):
    """A client sends requests faster than it lets them be answered."""


class GatewayProtocol(HttpToolsProtocol):
    """Answers 431 to a head that is too long, 408 to one that is late, and closes; on too many at once it just closes.

    While an answer is being sent it answers nothing else: that would stand in the middle of it.
    """

    unread_timeout_s = 30.0  # until a client has read most of what waits for it

    _has_begun = False  # a head, and it is not all here
    _head_bytes = 0  # since the last byte of a body: trailers behind one count too
    _head_due: asyncio.TimerHandle | None = None
    _unread_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it too
        """A client is there; its first request is awaited."""
        super().connection_made(transport)
        self._lines: deque[Line] = deque()  # of requests that are not answered yet
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._head_is_here()
        self._is_read()
        super().connection_lost(exc)
        for line in self._lines:
            line.left()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._has_begun:  # most heads come whole and need no timer
            self._await_head()
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self._is_answering():
                self.transport.close()  # a 431 would stand in the middle of the answer that is being sent
                return
            message = f"the request's line and headers are longer than {MAX_HEAD_BYTES} bytes; shorten them"
            self._refuse("431 Request Header Fields Too Large", message, "headers_too_large")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._has_begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._has_begun = False
        self._head_bytes = 0
        self._head_is_here()
        if len(self.pipeline) >= MAX_WAITING:
            self.transport.close()  # so that the 400 uvicorn answers does not stand in the middle of a running answer
            raise TooManyWaiting  # the parser stops
        super().on_headers_complete()
        line = Line(self.cycle)
        self.scope[LINE] = line  # type: ignore[literal-required]  # the application is ours
        self._lines.append(line)

    def on_body(self, body: bytes) -> None:
        """A piece of its body; its reader bounds it."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is all here; what comes next belongs to another."""
        self._head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is answered; they are in order."""
        self._lines.popleft()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        super().pause_writing()
        if self._unread_due is None:
            self._unread_due = self.loop.call_later(self.unread_timeout_s, self._unread)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_read()
        super().resume_writing()

    def _unread(self) -> None:
        self._unread_due = None
        for line in self._lines:
            line.why_left = f"the client read nothing for {self.unread_timeout_s:g} s"
        self.transport.abort()  # to close it would wait for the client

    def _is_read(self) -> None:
        if self._unread_due is not None:
            self._unread_due.cancel()
            self._unread_due = None

    def _await_head(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.call_later(HEAD_TIMEOUT_S, self._too_late)

    def _head_is_here(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _too_late(self) -> None:
        self._head_due = None
        if self._is_answering():
            self._await_head()  # a 408 would stand in the middle of the answer that is being sent
            return
        message = f"no whole request line and headers came within {HEAD_TIMEOUT_S:g} s; send them at once"
        self._refuse("408 Request Timeout", message, "headers_too_late")

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: str, message: str, code: str) -> None:
        body = error_body(int(status[:3]), message, code=code)
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
