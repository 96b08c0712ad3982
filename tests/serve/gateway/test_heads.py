"""A client that has not shown a key yet cannot fill the gateway's memory, nor hold up the others."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from serve.gateway.world import Address, World
from tuneloop.serve.gateway import protocol, server
from tuneloop.serve.gateway.protocol import MAX_HEAD_BYTES, MAX_WAITING


def flood(gateway: Address, head: bytes, more: bytes) -> tuple[int, bytes]:
    """Send `head`, then `more` again and again; how many bytes went out, and what came back."""
    sent, answer = 0, b""
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=10) as client:
        client.sendall(head)
        try:
            while sent < 100 * MAX_HEAD_BYTES:
                sent += client.send(more)
        except OSError:
            pass
        try:
            while part := client.recv(65_536):
                answer += part
        except OSError:  # what the gateway did not read resets the connection, maybe before its answer is here
            pass
    return sent, answer


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"], ids=["first", "second"])
@pytest.mark.parametrize("more", [b"a" * 10_000, b"x: y\r\n" * 1_000], ids=["one header", "many headers"])
def test_a_head_without_end_is_refused_and_the_connection_closed(world: World, before: bytes, more: bytes) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    sent, _ = flood(gateway, before + b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-a: ", more)
    assert sent < 100 * MAX_HEAD_BYTES
    assert gateway.chat().status == 200


@pytest.mark.parametrize("more", [b"a" * 10_000, b"x: y\r\n" * 1_000], ids=["one trailer", "many trailers"])
def test_trailers_without_end_close_the_connection(world: World, more: bytes) -> None:
    gateway = world.gateway()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-a: "
    sent, _ = flood(gateway, head, more)
    assert sent < 100 * MAX_HEAD_BYTES
    assert gateway.call("/readyz").status == 200


def test_a_head_slightly_too_long_gets_a_clear_431(world: World) -> None:
    gateway = world.gateway()
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=10) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * MAX_HEAD_BYTES)
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"headers_too_large"' in answer


@pytest.mark.parametrize(
    "before", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost:", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /"]
)
def test_a_head_that_does_not_end_in_time_is_refused_with_a_clear_408(
    world: World, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    gateway = world.gateway()
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=10) as client:
        client.sendall(before)
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    assert b"HTTP/1.1 408 Request Timeout\r\n" in answer
    assert answer.count(b"HTTP/1.1 200") == before.count(b"\r\n\r\n")
    assert b'"code":"headers_too_late"' in answer


def test_a_later_head_that_is_too_long_puts_nothing_into_the_answer_before_it(world: World) -> None:
    engine = world.engine("e1", "bot@1", words=20, pause_s=0.05)
    world.route((1, 10_000))
    gateway = world.gateway()
    asked = {"model": "bot", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=10) as client:
        client.sendall(head.encode() + body)
        answer = client.recv(65_536)
        client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 2 * MAX_HEAD_BYTES)
        with suppress(ConnectionResetError):  # what the gateway did not read resets the connection
            while part := client.recv(65_536):
                answer += part
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"HTTP/1.1 431" not in answer
    assert b"headers_too_large" not in answer
    assert len(engine.seen) == 1


class _Stalled(Exception):
    """This machine stood still for longer than the timer that is tested runs: that proves nothing."""


def _with_a_timer(attempt: Callable[[float], None], timer_s: float) -> None:
    """Try with a short timer, and with longer ones where the machine cannot keep pace with it."""
    for longer in (1, 4, 16):
        try:
            attempt(timer_s * longer)
        except _Stalled:
            continue
        return
    attempt(timer_s * 64)


def test_the_time_for_a_head_is_none_for_its_body_or_for_keeping_a_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(head_s: float) -> None:
        monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", head_s)
        gateway = world.gateway()
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=60) as client:
            for number in range(2):
                client.sendall(b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\na")
                if number == 0 and time.monotonic() - began > head_s:
                    raise _Stalled  # from connecting to the end of the head
                time.sleep(2 * head_s)
                client.sendall(b"b")
                assert client.recv(65_536).startswith(b"HTTP/1.1 405 ")
                time.sleep(2 * head_s)

    _with_a_timer(attempt, 0.3)


def test_a_connection_is_kept_while_it_is_used_and_closed_when_it_is_idle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(kept_s: float) -> None:
        monkeypatch.setattr(server, "KEEP_ALIVE_S", kept_s)
        gateway = world.gateway()
        used = time.monotonic()
        with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=120) as client:
            for _ in range(4):  # the timer that the first one set rings in between
                before, used = used, time.monotonic()
                client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                if time.monotonic() - before > kept_s:
                    raise _Stalled  # between one request and the next
                assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
                time.sleep(0.4 * kept_s)
            assert client.recv(1) == b""

    _with_a_timer(attempt, 1.0)


def test_long_heads_and_long_bodies_on_one_connection_are_no_trouble(world: World) -> None:
    gateway = world.gateway()
    request = b"POST /healthz HTTP/1.1\r\nhost: x\r\nx-a: %s\r\ncontent-length: 200000\r\n\r\n%s" % (
        b"a" * (MAX_HEAD_BYTES // 2),
        b"b" * 200_000,
    )
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=10) as client:
        for _ in range(4):
            client.sendall(request)
            answer = client.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 405 ")


def test_requests_sent_ahead_without_end_close_the_connection(world: World) -> None:
    gateway = world.gateway()
    sent, _ = flood(gateway, b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 1_000)
    assert sent < 100 * MAX_HEAD_BYTES
    assert gateway.call("/readyz").status == 200


def test_a_few_requests_sent_ahead_are_answered_in_order(world: World) -> None:
    gateway = world.gateway()
    ahead = b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(MAX_WAITING))
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=10) as client:
        client.sendall(ahead)
        answer = b""
        while answer.count(b"HTTP/1.1 404 ") < MAX_WAITING:
            answer += client.recv(65_536)
    found = [answer.index(b"GET /%d: Not Found" % number) for number in range(MAX_WAITING)]
    assert found == sorted(found)
