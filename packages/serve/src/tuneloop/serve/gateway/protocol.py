"""uvicorn's HTTP protocol, with an end to what a client may send before it has said who it is.

httptools keeps a header however long it grows, and uvicorn every header of a request and every request that is sent
before the one before it is answered: without limits one connection without a key could fill the memory.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuneloop.serve.gateway.errors import error_body

MAX_HEAD_BYTES = 65_536  # request line and headers; what one read of the socket brings may come on top
MAX_WAITING = 16  # requests of one connection behind the one that is being answered


class TooManyWaiting(Exception):
    """A client sends requests faster than it lets them be answered."""


class GatewayProtocol(HttpToolsProtocol):
    """Answers 431 when a request's head does not end in time, 400 to too many requests at once, and closes."""

    _in_head = True
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._in_head = False
        if len(self.pipeline) >= MAX_WAITING:
            raise TooManyWaiting  # the parser stops, and uvicorn answers 400
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is all here; what comes next belongs to another."""
        self._in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def _refuse(self) -> None:
        message = f"the request's line and headers are longer than {MAX_HEAD_BYTES} bytes; shorten them"
        body = error_body(431, message, code="headers_too_large")
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
