"""The HTTP client of the hop to engines, against servers that send exactly the bytes a test says."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from tuneloop.serve.gateway import client as module
from tuneloop.serve.gateway.client import MAX_HEAD_BYTES, AnswerBroken, Client, ConnectionFailed

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_SO_ATTACH_FILTER = 26  # of Linux; the socket module does not name it
AT_ONCE = "POST /v1/x HTTP/1.1\r\n"


@dataclass
class Server:
    """Answers each request with the next of `answers`, in pieces; an answer that ends with None closes."""

    answers: list[list[bytes | None]]
    reads_bodies: bool = True
    connections: int = 0
    heads: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    greets: bytes = b""
    url: str = ""
    at_work: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.at_work.add(task)
        try:
            writer.write(self.greets)
            while self.answers:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                if self.reads_bodies:
                    await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
                for piece in self.answers.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)  # so that pieces arrive one by one
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.ended.set()
            writer.close()


def run(
    answers: list[list[bytes | None]],
    test: Callable[[Client, Server], Awaitable[None]],
    *,
    reads_bodies: bool = True,
) -> None:
    """Run a test against a server on a port of its own."""

    async def main() -> None:
        server = Server(answers, reads_bodies)
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/x"
        client = Client(connect_timeout_s=5.0)
        try:
            await test(client, server)
        finally:
            await client.close()
            listener.close()
            if server.at_work:
                await asyncio.wait(server.at_work, timeout=5)

    asyncio.run(main())


def soon(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def ask(client: Client, url: str, body: bytes = b"{}") -> tuple[int, bytes]:
    """One request and its whole answer."""
    status, answer = await client.post(url, body, {"x-request-id": "r"}, soon())
    try:
        parts = []
        while part := await answer.some(soon()):
            parts.append(part)
        return status, b"".join(parts)
    finally:
        answer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [OK],
        [OK[:10], OK[10:40], OK[40:]],
        [CHUNKED, b"2\r\nhe\r\n", b"3\r\nllo\r\n0\r", b"\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n" + OK],
        [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", OK],
    ],
    ids=["whole", "cut", "chunked", "continue", "interim"],
)
def test_an_answer_is_read_whole_and_its_connection_used_again(pieces: list[bytes | None]) -> None:
    async def test(client: Client, server: Server) -> None:
        for _ in range(3):
            assert await ask(client, server.url) == (200, b"hello")
        assert server.connections == 1
        assert "x-request-id: r\r\n" in server.heads[0]
        assert server.heads[0].startswith(AT_ONCE)

    run([list(pieces) for _ in range(3)], test)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", None],
        [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"],
        [b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello"],
        [OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"],
        [OK, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"],
    ],
    ids=["ends with the connection", "close", "HTTP/1.0", "two answers at once", "a second answer later"],
)
def test_a_connection_whose_state_is_not_certain_is_not_used_again(pieces: list[bytes | None]) -> None:
    async def test(client: Client, server: Server) -> None:
        assert await ask(client, server.url) == (200, b"hello")
        await asyncio.wait_for(server.ended.wait(), 5)  # whatever comes late has come
        assert await ask(client, server.url) == (200, b"hello")
        assert server.connections == 2

    run([list(pieces), [OK]], test)


@pytest.mark.parametrize(
    "pieces",
    [
        [OK[:-2], None],
        [CHUNKED + b"5\r\nhel", None],
        [CHUNKED + b"5\r\nhello\r\n", None],
        [CHUNKED + b"5\r\nhello\r\nzz\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\r\n", None],
        [None],
        [b"SSH-2.0-OpenSSH\r\n"],
        [b"HTTP/1.1 200 OK\r\nx: " + b"a" * (2 * MAX_HEAD_BYTES)],
    ],
    ids=["length", "chunk", "no last chunk", "bad chunk", "two lengths", "head", "nothing", "no HTTP", "long head"],
)
def test_an_answer_that_does_not_end_well_is_never_taken_for_whole(pieces: list[bytes | None]) -> None:
    async def test(client: Client, server: Server) -> None:
        with pytest.raises(AnswerBroken):
            await ask(client, server.url)
        assert await ask(client, server.url) == (200, b"hello")
        assert server.connections == 2

    run([list(pieces), [OK]], test)


def test_an_answer_that_comes_before_the_request_is_sent_is_heard_and_ends_the_connection() -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig"

    async def test(client: Client, server: Server) -> None:
        assert await ask(client, server.url, b"x" * 20_000_000) == (413, b"big")
        assert await ask(client, server.url) == (200, b"hello")
        assert server.connections == 2

    run([[refusal], [OK]], test, reads_bodies=False)


def test_an_answer_given_back_unread_closes_its_connection() -> None:
    async def test(client: Client, server: Server) -> None:
        _, answer = await client.post(server.url, b"{}", {}, soon())
        answer.close()
        answer.close()  # safe to repeat
        await asyncio.wait_for(server.ended.wait(), 5)
        assert await ask(client, server.url) == (200, b"hello")
        assert server.connections == 2

    run([[CHUNKED + b"2\r\nhe\r\n", b"1\r\nl\r\n"], [OK]], test)


def test_what_nobody_reads_stops_coming() -> None:
    async def test(client: Client, server: Server) -> None:
        _, answer = await client.post(server.url, b"{}", {}, soon())
        await asyncio.sleep(0.3)  # the server sends as long as it is let
        held = sum(map(len, answer._parts))
        assert held < 1_500_000
        read = 0
        while part := await answer.some(soon()):
            read += len(part)
        assert read == 32_000_000
        answer.close()

    run([[b"HTTP/1.1 200 OK\r\ncontent-length: 32000000\r\n\r\n" + b"x" * 32_000_000]], test)


def test_silence_ends_at_the_deadline_and_the_connection_with_it() -> None:
    async def test(client: Client, server: Server) -> None:
        with pytest.raises(TimeoutError):
            await client.post(server.url, b"{}", {}, soon(0.1))
        status, answer = await client.post(server.url, b"{}", {}, soon())
        assert (status, await answer.some(soon())) == (200, b"he")
        with pytest.raises(TimeoutError):  # a nearer deadline than the one before it
            await answer.some(soon(0.1))
        answer.close()
        assert await ask(client, server.url) == (200, b"hello")
        assert server.connections == 3

    run([[], [CHUNKED + b"2\r\nhe\r\n"], [OK]], test)


@pytest.mark.parametrize("when", ["before the request", "while it thinks"])
def test_a_machine_that_vanishes_is_found_out_by_the_kernel(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """In tenths of the usual times. A filter that drops what comes makes the far end as silent as one without power."""
    monkeypatch.setattr(module, "_OPTIONS", [(*name, max(1, value // 10)) for *name, value in module._OPTIONS])
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # one instruction of BPF: return 0
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))

    async def main() -> None:
        gone: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            if when == "before the request":
                writer.write(OK)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            gone.put_nowait(writer)

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/x"
        client = Client(connect_timeout_s=5.0)
        try:
            if when == "before the request":
                assert await ask(client, url) == (200, b"hello")
            with pytest.raises(AnswerBroken, match="timed out"):
                await client.post(url, b"{}", {}, soon(60.0))
        finally:
            await client.close()
            listener.close()
            (await gone.get()).close()

    asyncio.run(main())


def test_a_connection_idle_for_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.05)

    async def test(client: Client, server: Server) -> None:
        await ask(client, server.url)
        await asyncio.sleep(0.1)
        await ask(client, server.url)
        assert server.connections == 2
        server.ended.clear()
        await asyncio.wait_for(server.ended.wait(), 5)  # it is closed even if nobody asks again

    run([[OK], [OK], [OK]], test)


def test_nobody_there_is_told_apart_from_a_broken_answer() -> None:
    async def test(client: Client, server: Server) -> None:
        with pytest.raises(ConnectionFailed):
            await client.post("http://127.0.0.1:9/x", b"{}", {}, soon())

    run([], test)


def test_one_who_speaks_before_being_asked_is_no_engine() -> None:
    async def test(client: Client, server: Server) -> None:
        server.greets = OK
        answer = await client._connect(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]), False), soon())
        await asyncio.wait_for(server.ended.wait(), 5)
        assert not answer.usable
        with pytest.raises(AnswerBroken):  # at once: nothing would ever come
            await answer.post(b"POST /x HTTP/1.1\r\n\r\n", b"", soon())

    run([[OK]], test)


def test_a_header_cannot_become_two() -> None:
    async def test(client: Client, server: Server) -> None:
        for value in ("a\r\nx-evil: 1", "a\nx-evil: 1", "a\rx-evil: 1"):
            with pytest.raises(ValueError, match="line break"):
                await client.post(server.url, b"{}", {"traceparent": value}, soon())
        assert not server.heads

    run([[OK]], test)


@pytest.mark.parametrize("stops_after", [1, 3, 99])
def test_a_pumped_answer_comes_in_order_and_stops_when_the_taker_has_enough(stops_after: int) -> None:
    pieces: list[bytes | None] = [CHUNKED, *(b"2\r\n%02d\r\n" % number for number in range(5)), b"0\r\n\r\n"]

    async def test(client: Client, server: Server) -> None:
        _, answer = await client.post(server.url, b"{}", {}, soon())
        got: list[bytes] = []

        def take(data: bytes) -> bool:
            got.append(data)
            return len(b"".join(got)) // 2 < stops_after

        enough = await answer.pump(take, 10.0)
        assert enough == (stops_after < 5)
        while part := await answer.some(soon()):  # what the taker did not want is still there
            got.append(part)
        assert b"".join(got) == b"0001020304"
        answer.close()
        assert await ask(client, server.url) == (200, b"hello")
        assert server.connections == 1

    run([pieces, [OK]], test)


def test_what_a_taker_raises_and_what_breaks_off_reach_the_one_who_waits() -> None:
    async def test(client: Client, server: Server) -> None:
        def refuse(data: bytes) -> bool:
            raise ValueError(data.decode())

        for error, take in ((ValueError, refuse), (AnswerBroken, bool), (TimeoutError, bool)):
            _, answer = await client.post(server.url, b"{}", {}, soon())
            with pytest.raises(error):
                await answer.pump(take, 0.2)
            answer.close()
        assert server.connections == 3

    began, more = CHUNKED, b"2\r\nhe\r\n"
    run([[began, more], [began, more, None], [began, more]], test)
