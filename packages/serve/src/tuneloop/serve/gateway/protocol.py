"""uvicorn's HTTP protocol, with an end to what a client may send before it has said who it is, and to how long it may
leave unread what it was sent.

httptools keeps a header however long it grows, and uvicorn every header of a request and every request that is sent
before the one before it is answered: without limits one connection without a key could fill the memory. And whoever
writes to a client that does not read waits, holding its turn and its engine, until the connection is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuneloop.serve.gateway.body import PATHS
from tuneloop.serve.gateway.errors import error_body
from tuneloop.serve.gateway.exchange import new_request_id
from tuneloop.serve.gateway.line import LINE, Line

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_HEAD_BYTES = 65_536  # request line and headers; what one read of the socket brings may come on top
HEAD_TIMEOUT_S = 30.0  # from connecting, or from a later request's first byte, to the end of its head
MAX_WAITING = 16  # requests of one connection behind the one that is being answered


KNOWN = {path.encode(): path for path in PATHS}  # whose addresses need no parsing


class TooManyWaiting(Exception):
    """A client sends requests faster than it lets them be answered."""


class GatewayProtocol(HttpToolsProtocol):
    """Answers 431 to a head that is too long, 408 to one that is late, and closes; on too many at once it just closes.

    While an answer is being sent it answers nothing else: that would stand in the middle of it.
    """

    cycle: Line  # of the newest request
    unread_timeout_s = 30.0  # until a client has read most of what waits for it

    _has_begun = False  # a head, and it is not all here
    _idle_since = 0.0
    _head_bytes = 0  # since the last byte of a body: trailers behind one count too
    _head_due: asyncio.TimerHandle | None = None
    _unread_due: asyncio.TimerHandle | None = None
    _next: RequestResponseCycle | None = None  # for this connection's own task to answer
    _idle: asyncio.Future[None] | None = None  # that task waits for a request
    _own_task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it too
        """A client is there; its first request is awaited."""
        super().connection_made(transport)
        self._lines: deque[Line] = deque()  # of requests that are not answered yet
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._head_is_here()
        self._is_read()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        super().connection_lost(exc)
        if self._idle is not None and not self._idle.done():  # else that task was cancelled: the server is stopping
            self._idle.set_result(None)
        self._idle = None
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
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._has_begun = False
        self._head_bytes = 0
        self._head_is_here()
        if len(self.pipeline) >= MAX_WAITING:
            self.transport.close()  # so that the 400 uvicorn answers does not stand in the middle of a running answer
            raise TooManyWaiting  # the parser stops
        before, line = self.cycle, self._line()
        self.cycle = line
        self._lines.append(line)
        if before is None or before.response_complete:
            self._start_asgi_task(line, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((line, self.app))

    def on_body(self, body: bytes) -> None:
        """A piece of its body; its reader bounds it."""
        self._head_bytes = 0
        if not self.cycle.response_complete:
            self.cycle.arrived(body)
            if len(self.cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """It is all here; what comes next belongs to another."""
        self._head_bytes = 0
        if not self.cycle.response_complete:
            self.cycle.arrived_whole()

    def on_response_complete(self) -> None:
        """A request is answered; they are in order."""
        self._lines.popleft()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Answer completions in one task of this connection: to make one for each takes as long as a tenth of them.

        While that task is still busy with what follows the answer before, this one gets a task of its own.
        """
        if cycle.scope["path"] not in PATHS or (
            self._own_task is not None and (self._idle is None or self._idle.done())
        ):
            super()._start_asgi_task(cycle, app)
            return
        self._next = cycle
        if self._own_task is None:
            self._own_task = self.loop.create_task(self._answer_all(app))
        elif self._idle is not None:
            self._idle.set_result(None)
            self._idle = None
        self.tasks.add(self._own_task)  # those that a server waits for before it ends

    async def _answer_all(self, app: ASGI3Application) -> None:
        """Answer what `_next` holds, until the connection is gone."""
        while (line := self._next) is not None:
            self._next = None
            try:
                await line.run_asgi(app)
            finally:
                if self._own_task is not None:
                    self.tasks.discard(self._own_task)
            if self.transport.is_closing():
                break
            self._idle = self.loop.create_future()
            await self._idle

    def _unset_keepalive_if_required(self) -> None:
        """uvicorn stops the timer whenever a byte comes; here it goes on."""

    def timeout_keep_alive_handler(self) -> None:
        """The timer rings that outlives requests: one made for each would cost more than to look."""
        self.timeout_keep_alive_task = None
        if self._is_answering():
            return  # the answer's end sets it again
        rest_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if rest_s > 0 or self._has_begun:  # a head has a time of its own
            self._keep_alive_for(rest_s if rest_s > 0 else HEAD_TIMEOUT_S)
        else:
            super().timeout_keep_alive_handler()

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

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _line(self) -> Line:
        """The request whose head is here, as ASGI and the hot path know it."""
        version = self.parser.get_http_version()
        scope: dict[str, Any] = {
            "type": "http",
            "method": self.parser.get_method().decode("ascii"),
            "path": KNOWN.get(self.url),
            "headers": self.headers,
        }
        if scope["path"] is None:  # else it is for the hot path, which asks for no more
            parsed = httptools.parse_url(self.url)
            scope |= {
                "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
                "http_version": version,
                "server": self.server,
                "client": self.client,
                "scheme": self.scheme,
                "root_path": self.root_path,
                "path": unquote(parsed.path.decode("ascii")),
                "raw_path": parsed.path,
                "query_string": parsed.query or b"",
                "state": self.app_state.copy(),
            }
        line = Line(self, scope, keep_alive=version != "1.0" and self.parser.should_keep_alive())
        scope[LINE] = line
        return line

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

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in the shape of all others."""
        self._refuse("400 Bad Request", msg, "invalid_http")

    def _refuse(self, status: str, message: str, code: str) -> None:
        body = error_body(int(status[:3]), message, code=code)
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"x-request-id: {new_request_id()}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
