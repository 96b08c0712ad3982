"""A small HTTP/1.1 client for the hop to engines, on httptools: POST a body, read the answer as it comes.

It does what that hop needs and nothing else: connections are kept and used again, newest first; answers may state
their length, be chunked, or end with the connection; interim (1xx) answers are passed over; an answer may come before
the request is all sent. A connection is used again only when both sides are known to be done with it: the answer is
read to its end, the engine keeps it open, the request is all on its way, and nothing came that nobody asked for.
Reading stops while `_HIGH_BYTES` wait to be read, so a slow client slows its engine and fills no memory.

About 25 µs a request; aiohttp, which it replaced, took half of the gateway's CPU.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Mapping
from typing import TypeAlias
from urllib.parse import urlsplit

import httptools

IDLE_S = 4.0  # vLLM closes what is idle at 5 s
MAX_HEAD_BYTES = 65_536
_HIGH_BYTES = 262_144
_LOW_BYTES = 65_536
# A machine that has vanished ends no connection: what is sent there is not acknowledged, and an engine that thinks for
# minutes is as silent, so the kernel asks while nothing comes. Either breaks the connection after some 20 s.
_VANISHED_S = 20
_PROBES = 3
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _VANISHED_S // 4),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _VANISHED_S // 4),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _VANISHED_S * 1_000),
)
_COMMON = b"accept: */*\r\naccept-encoding: identity\r\ncontent-type: application/json\r\n"
_STATES_ITS_END = re.compile(rb"\n(content-length|transfer-encoding)\s*:", re.IGNORECASE)
Origin: TypeAlias = tuple[str, int, bool]


class ConnectionFailed(OSError):
    """No connection could be made: nobody listens, or nobody answers in time."""


class AnswerBroken(OSError):
    """The connection broke, or what came over it is no HTTP answer."""


class Answer(asyncio.Protocol):
    """One connection, and the answer that is coming over it."""

    def __init__(self, client: Client, origin: Origin) -> None:
        self._client = client
        self.origin = origin
        self.idle_since = 0.0
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0  # of the wait that is on
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._take: Callable[[bytes], bool] | None = None  # while `pump` waits
        self._idle_s = 0.0
        self._enough = False
        self._paused = False
        self._lost = False
        self._parser = httptools.HttpResponseParser(self)  # for one answer after the other: it begins anew by itself
        self._begin()
        self._complete = True  # nothing is awaited yet

    def _begin(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""  # all that came up to and with its end
        self._status = 0
        self._has_head = self._complete = self._reusable = False
        self._error: OSError | None = None

    async def post(self, head: bytes, body: bytes, deadline: float) -> int:
        """Send a request; returns the status once the answer's head is here.

        Raises:
            AnswerBroken: none came.
            TimeoutError: none came by `deadline`, on the loop's clock.
        """
        if self._lost:
            raise AnswerBroken("the connection was closed before a request was sent")
        self._begin()
        for part in (head + body,) if len(body) < 65_536 else (head, body):
            self._transport.write(part)
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._news(deadline)
        return self._status

    async def some(self, deadline: float) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            AnswerBroken: the rest does not come.
            TimeoutError: it does not come by `deadline`, on the loop's clock.
        """
        while not self._parts:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._news(deadline)
        data = self._taken()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    def here(self) -> bytes | None:
        """All of the body if it has come and waits to be read, as one that is short does with its head."""
        return self._taken() if self._complete and self._parts and not self._paused else None

    def _taken(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return data

    async def pump(self, take: Callable[[bytes], bool], idle_s: float) -> bool:
        """Hand the body to `take` as it comes, until that has enough (True) or the body ends (False).

        `take` is called where bytes come in, not in this task: waking a task costs more than passing an event on.

        Raises:
            AnswerBroken: the rest does not come.
            TimeoutError: nothing came for `idle_s`.
            Exception: what `take` raises.
        """
        while not self._parts:
            if self._complete:
                return False
            if self._error is not None:
                raise self._error
            self._take, self._idle_s, self._enough = take, idle_s, False
            try:
                await self._news(self._client.loop.time() + idle_s)
            finally:
                self._take = None
            if self._enough:
                return True
        return not take(await self.some(0.0)) or await self.pump(take, idle_s)

    def close(self) -> None:
        """Keep the connection for another request if it is fit for one, else close it; safe to repeat."""
        if self._lost or self.idle_since:
            return
        if self._complete and self._reusable and not self._parts and not self._transport.get_write_buffer_size():
            self._client.keep(self)
        else:
            self._lost = True
            self._transport.abort()

    def discard(self) -> None:
        """Close the connection, whatever it carries."""
        self._lost = True
        self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether a kept connection is still there."""
        return not self._lost and not self._transport.is_closing()

    # --- what the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclass

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        if self._complete:  # nobody asked: whatever it is, it must not become the next request's answer
            self._reusable = False
            self._client.forget(self)
            self.discard()
            return
        if not self._has_head:
            self._head = self._head + data if self._head else data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"no HTTP answer: {error}")
            return
        if not self._has_head and len(self._head) > MAX_HEAD_BYTES:
            self._fail(f"an answer whose headers are longer than {MAX_HEAD_BYTES} bytes")
            return
        if self._take is not None:
            self._hand_over(self._take)
            return
        if self._size > _HIGH_BYTES and not self._paused and not self._complete:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _hand_over(self, take: Callable[[bytes], bool]) -> None:
        """Pass on what has come; the task that waits goes on only if there is something for it to do."""
        try:
            if self._parts:
                data = self._taken()
                self._deadline = self._client.loop.time() + self._idle_s
                self._enough = not take(data)
        except Exception as error:  # noqa: BLE001 (it is raised in the task that waits)
            self._take = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
            return
        if self._enough or self._complete:
            self._take = None
            self._wake()

    def eof_received(self) -> None:
        """The engine sends no more."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._lost = True
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._client.forget(self)
        if self._complete or self._error is not None:
            return
        if self._has_head and exc is None and not _STATES_ITS_END.search(self._head):
            self._complete = True  # such an answer ends with its connection
            self._wake()
        else:
            self._fail(f"the connection was closed ({exc or 'by the engine'})")

    # --- what the parser tells

    def on_headers_complete(self) -> None:
        """The head of an answer, or of an interim one."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
            self._has_head = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._complete:  # of an answer nobody asked for
            return
        self._parts.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:
        """The end of an answer."""
        if not self._has_head:  # an interim one
            return
        if self._complete:
            self._reusable = False  # two answers to one request
            return
        self._complete = True
        self._reusable = self._parser.should_keep_alive()

    def _fail(self, why: str) -> None:
        self._error = AnswerBroken(why)
        self._reusable = False
        if not self._lost:
            self.discard()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _news(self, deadline: float) -> None:
        """Wait until something has come.

        The alarm outlives waits and requests: one that rings too early is set again, which is rare, instead of one
        being made for each wait, which would cost more than the wait.
        """
        self._deadline = deadline
        if self._alarm is None or deadline < self._alarm_at:
            self._set_alarm(deadline)
        self._waiter = self._client.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = self._client.loop.call_at(at, self._rings), at

    def _rings(self) -> None:
        self._alarm = None
        if self._waiter is None or self._waiter.done():
            return
        if self._client.loop.time() >= self._deadline:
            self._waiter.set_exception(TimeoutError())
        else:
            self._set_alarm(self._deadline)


class Client:
    """Keeps connections, by where they lead; one for each event loop."""

    def __init__(self, connect_timeout_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self._connect_timeout_s = connect_timeout_s
        self._kept: dict[Origin, list[Answer]] = {}
        self._targets: dict[str, tuple[Origin, bytes]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], deadline: float) -> tuple[int, Answer]:
        """Send a request; the status, and the answer to read; it must be closed.

        Raises:
            ConnectionFailed: nobody is there.
            AnswerBroken: no answer came.
            TimeoutError: none came by `deadline`, on the loop's clock.
            ValueError: a header that would be two.
        """
        origin, start = self._targets.get(url) or self._target(url)
        answer = self._idle(origin) or await self._connect(origin, deadline)
        said = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if said.count("\n") != len(headers) or said.count("\r") != len(headers):
            answer.close()
            raise ValueError("a header with a line break in it")
        head = b"%s%scontent-length: %d\r\n\r\n" % (start, said.encode("latin-1"), len(body))
        try:
            return await answer.post(head, body, deadline), answer
        except BaseException:
            answer.discard()
            raise

    def keep(self, answer: Answer) -> None:
        """Take a connection back that can carry another request."""
        if self._closed:
            answer.discard()
            return
        answer.idle_since = self.loop.time()
        self._kept.setdefault(answer.origin, []).append(answer)
        if self._sweep is None:
            self._sweep = self.loop.call_later(1.0, self._swept)

    def forget(self, answer: Answer) -> None:
        """A connection is no good any more."""
        if answer.idle_since:
            answer.idle_since = 0.0
            kept = self._kept.get(answer.origin)
            if kept and answer in kept:
                kept.remove(answer)

    async def close(self) -> None:
        """Close every kept connection; those in use close when their answer is given back."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for answer in [answer for kept in self._kept.values() for answer in kept]:
            answer.discard()
        self._kept.clear()

    def _idle(self, origin: Origin) -> Answer | None:
        kept = self._kept.get(origin)
        while kept:
            answer = kept.pop()
            since, answer.idle_since = answer.idle_since, 0.0
            if answer.usable and self.loop.time() - since < IDLE_S:
                return answer
            answer.discard()
        return None

    async def _connect(self, origin: Origin, deadline: float) -> Answer:
        host, port, secure = origin
        try:
            async with asyncio.timeout_at(min(deadline, self.loop.time() + self._connect_timeout_s)):
                transport, answer = await self.loop.create_connection(
                    lambda: Answer(self, origin), host, port, ssl=secure or None
                )
        except TimeoutError:
            if self.loop.time() >= deadline:
                raise
            raise ConnectionFailed(f"no connection to {host}:{port} within {self._connect_timeout_s:g} s") from None
        except OSError as error:
            raise ConnectionFailed(f"no connection to {host}:{port}: {error}") from error
        for option in _OPTIONS:
            transport.get_extra_info("socket").setsockopt(*option)
        return answer

    def _target(self, url: str) -> tuple[Origin, bytes]:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        origin = (parts.hostname or "", parts.port or (443 if secure else 80), secure)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = parts.netloc.rpartition("@")[2]
        found = origin, f"POST {path} HTTP/1.1\r\nhost: {host}\r\n".encode() + _COMMON
        if len(self._targets) > 1_000:  # engines come and go
            self._targets.clear()
        self._targets[url] = found
        return found

    def _swept(self) -> None:
        """Close what has been idle for too long; goes on as long as anything is kept."""
        self._sweep = None
        limit = self.loop.time() - IDLE_S
        for origin, kept in list(self._kept.items()):
            for answer in [answer for answer in kept if answer.idle_since <= limit]:
                kept.remove(answer)
                answer.idle_since = 0.0
                answer.discard()
            if not kept:
                del self._kept[origin]
        if self._kept:
            self._sweep = self.loop.call_later(1.0, self._swept)
