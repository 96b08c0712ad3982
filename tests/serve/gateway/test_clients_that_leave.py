"""A client that leaves must not keep an engine busy, wherever its request stands."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from serve.gateway.world import Address, World, until
from tuneloop.serve.gateway.protocol import GatewayProtocol

ASK = {"model": "bot", "messages": [{"role": "user", "content": "Hello?"}]}


def connect(gateway: Address, *, stream: bool, body: bytes | None = None) -> socket.socket:
    """A raw client that has sent its request."""
    url = urlsplit(gateway.url)
    connection = socket.create_connection((url.hostname or "", url.port or 0), timeout=10)
    data = body if body is not None else json.dumps(ASK | {"stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n"
    connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def only_record_is_499(world: World) -> None:
    record = until(lambda: next(iter(world.registry.traffic.window("bot")), None))
    assert (record.status, record.error) == (499, "the client left")


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_token_cancels_the_engines_work(world: World, stream: bool) -> None:
    engine = world.engine("e1", "bot@1", fault="never_answers")
    world.route((1, 10_000))
    connection = connect(world.gateway(), stream=stream)
    until(lambda: engine.at_work == 1)
    connection.close()
    until(lambda: engine.left == 1, 2)
    only_record_is_499(world)


def test_leaving_in_mid_stream_cancels_the_engines_work(world: World) -> None:
    engine = world.engine("e1", "bot@1", pause_s=0.05, words=1_000)
    world.route((1, 10_000))
    gateway = world.gateway()
    connection = connect(gateway, stream=True)
    while b"w3" not in connection.recv(65_536):
        pass
    connection.close()
    until(lambda: engine.left == 1, 2)
    only_record_is_499(world)
    assert gateway.metric('tuneloop_requests_total{model="bot",status="499",version="1"}') == 1


def test_a_client_that_reads_nothing_is_let_go(world: World) -> None:
    engine = world.engine("e1", "bot@1", words=2_000_000)
    world.route((1, 10_000))
    with connect(world.gateway(idle_timeout_s=0.5), stream=True) as connection:
        connection.recv(10)
        until(lambda: engine.left == 1, 10)
        record = until(lambda: next(iter(world.registry.traffic.window("bot")), None))
    assert (record.status, record.error) == (499, "the client read nothing for 0.5 s")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_reads_nothing_of_an_answer_that_is_all_there_gives_its_turn_back(
    world: World, stream: bool
) -> None:
    world.engine("e1", "bot@1", says=("x" * 100_000,) * 120)
    world.route((1, 10_000))
    gateway = world.gateway(idle_timeout_s=0.5)
    with connect(gateway, stream=stream) as connection:
        assert connection.recv(10)
        record = until(lambda: next(iter(world.registry.traffic.window("bot")), None), 10)
        until(lambda: gateway.metric("tuneloop_requests_in_flight") == 0, 5)
        assert sum(map(len, iter(lambda: connection.recv(1_000_000), b""))) < 12_000_000
    assert (record.status, record.error) == (499, "the client read nothing for 0.5 s")


def test_a_finished_answer_is_not_mistaken_for_a_client_that_left(world: World) -> None:
    world.engine("e1", "bot@1", words=1)
    world.route((1, 10_000))
    gateway = world.gateway()

    def ask() -> None:
        for n in range(25):
            assert gateway.chat(stream=n % 2 == 0).status == 200

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = until(lambda: len(found := world.registry.traffic.window("bot")) == 100 and found)
    assert {record.status for record in records} == {200}


def test_a_client_that_leaves_at_done_has_had_its_answer(world: World) -> None:
    """Clients stop reading at the last event, which comes before the end of the response."""
    engine = world.engine("e1", "bot@1", fault="silent_after_done")
    world.route((1, 10_000))
    with connect(world.gateway(), stream=True) as connection:
        got = b""
        while b"data: [DONE]" not in got:
            got += connection.recv(65_536)
    record = until(lambda: next(iter(world.registry.traffic.window("bot")), None))
    assert (record.status, record.error) == (200, None)
    until(lambda: engine.left == 1, 5, "an engine that never ends its response is let go")


def test_keep_alive_connections_carry_one_request_after_another(world: World) -> None:
    world.engine("e1", "bot@1", words=1)
    world.route((1, 10_000))
    with connect(world.gateway(), stream=False) as connection:
        for _ in range(3):
            got = b""
            while not got.endswith(b"}}"):
                got += connection.recv(65_536)
            assert got.startswith(b"HTTP/1.1 200")
            time.sleep(0.05)
            data = json.dumps(ASK).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {world.key}\r\n"
            connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)


def test_a_client_that_leaves_while_the_server_stops_is_no_defect() -> None:
    """A connection whose own task was cancelled answers what still comes, and ends as any other."""
    defects: list[dict[str, Any]] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, defect: defects.append(defect))
        config, state = Config(answer, lifespan="off"), ServerState()
        config.load()
        made: list[GatewayProtocol] = []

        def protocol() -> GatewayProtocol:
            made.append(GatewayProtocol(config=config, server_state=state, app_state={}))
            return made[-1]

        async with await loop.create_server(protocol, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for again in (True, False):
                writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                own = made[-1]._own_task
                assert own is not None
                if again:
                    own.cancel()
                    await asyncio.wait([own])
            made[-1].transport.abort()
            assert await reader.read() == b""
            writer.close()

    asyncio.run(run())
    assert defects == []


def test_a_client_that_had_sent_its_next_request_ahead_is_noticed_when_it_leaves(world: World) -> None:
    engine = world.engine("e1", "bot@1", pause_s=0.02, words=2_000)
    world.route((1, 10_000))
    with connect(world.gateway(), stream=True) as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.3)
        assert engine.at_work == 1
    until(lambda: engine.left == 1, 5, "the engine is told that nobody listens")
