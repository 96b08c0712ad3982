"""Whoever sends a request by drops, or opens connections without end, keeps nobody else out."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from registry.api.plane import GENEROUS, Plane, running
from tuneloop.registry import Registry

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
LIMIT_S = 1.0


@pytest.fixture
def plane(registry: Registry) -> Iterator[Plane]:
    few = GENEROUS.model_copy(update={"header_timeout_s": LIMIT_S, "max_connections": 5})
    with running(registry, few) as listening:
        yield listening


@contextmanager
def connected(plane: Plane) -> Iterator[socket.socket]:
    url = urlsplit(plane.url)
    with socket.create_connection((url.hostname, url.port or 0), timeout=20) as made:
        yield made


def answered(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    found = b""
    while piece := connection.recv(4_096):
        found += piece
    return found


def status(connection: socket.socket) -> int:
    """That of one response, which is read whole: its body may come behind its head."""
    with HTTPResponse(connection) as response:
        response.begin()
        response.read()
        return response.status


@pytest.mark.parametrize("begun", [b"", b"GET /hea", HEAD])
def test_a_head_that_does_not_arrive_in_time_ends_the_connection(plane: Plane, begun: bytes) -> None:
    with connected(plane) as slow:
        slow.sendall(begun)
        said = answered(slow)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"urn:tuneloop:problem:timeout" in said
    assert b"within 1 s" in said


def test_drops_do_not_move_the_deadline(plane: Plane) -> None:
    with connected(plane) as slow:
        slow.sendall(HEAD)
        slow.settimeout(LIMIT_S / 6)
        began, said = time.monotonic(), b""
        while not said:
            assert time.monotonic() - began < 15
            try:
                slow.sendall(b"x: y\r\n")
                said = slow.recv(4_096)
            except TimeoutError:
                continue
            except ConnectionError:  # it was closed, and what we sent on refused
                break
        assert said == b"" or said.startswith(b"HTTP/1.1 408 ")


def test_a_connection_is_kept_between_requests_and_the_next_head_has_its_own_deadline(plane: Plane) -> None:
    with connected(plane) as kept:
        for _ in range(2):
            kept.sendall(HEAD + b"\r\n")
            assert status(kept) == 200
            time.sleep(1.2 * LIMIT_S)  # idle for longer than a head may take: nothing is under way, so nothing is late
        kept.sendall(b"GET /hea")
        assert answered(kept).startswith(b"HTTP/1.1 408 ")


def test_a_request_that_takes_long_to_answer_is_not_cut_off(plane: Plane, tmp_path: Path) -> None:
    body = b'{"reason": "r"}'
    head = b"POST /v1/models/bot/rollback HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body)
    secret = next(iter(plane.secrets.values())).encode()
    with connected(plane) as asking:
        asking.sendall(head + b"Authorization: Bearer " + secret + b"\r\n\r\n")
        time.sleep(1.2 * LIMIT_S)  # the head is there: its deadline is over with
        asking.sendall(body)
        assert asking.recv(4_096).startswith(b"HTTP/1.1 4")


def test_connections_above_the_limit_are_told_and_closed_and_room_is_found_again(plane: Plane) -> None:
    plane.client.close()
    with ExitStack() as stack:
        held = []
        for _ in range(5):
            made = stack.enter_context(connected(plane))
            made.sendall(HEAD + b"\r\n")
            assert b"200 OK" in made.recv(4_096)
            held.append(made)
        with connected(plane) as sixth:
            said = answered(sixth)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"5 connections are open" in said
    began = time.monotonic()
    while True:
        with connected(plane) as again:
            again.sendall(HEAD + b"Connection: close\r\n\r\n")
            if b"200 OK" in answered(again):
                return
        assert time.monotonic() - began < 15
