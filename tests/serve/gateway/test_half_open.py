"""Half-open connections: the other end's machine is gone, and neither end nor error of the connection ever comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from serve.gateway.test_answers import recorded
from serve.gateway.test_clients_that_leave import connect
from serve.gateway.wire import Wire
from serve.gateway.world import Address, World, until


@contextmanager
def relayed(url: str) -> Iterator[tuple[Wire, str]]:
    """A line to what is at a URL, and the URL of its near end."""
    wire = Wire(urlsplit(url).port or 0)
    wire.mend()
    try:
        yield wire, f"http://127.0.0.1:{wire.port}"
    finally:
        wire.cut()


def test_a_half_open_connection_to_an_engine_costs_no_request(world: World) -> None:
    """The kept one, over which an answer has come before."""
    far, near = world.engine("e1", "bot@1"), world.engine("e2", "bot@1")
    with relayed(far.url) as (wire, far.url):
        world.beat()
        world.route((1, 10_000))
        gateway = world.gateway(first_byte_timeout_s=3)
        before = gateway.chat(stream=True)
        assert recorded(world, before.headers["x-request-id"]).engine == "e1"
        wire.freeze()
        got = gateway.chat(stream=True)
        assert got.status == 200
        assert recorded(world, got.headers["x-request-id"]).engine == "e2"
        assert (len(far.seen), len(near.seen)) == (1, 1)


def test_a_half_open_connection_of_a_client_keeps_no_engine_busy(world: World) -> None:
    engine = world.engine("e1", "bot@1", words=2_000_000)
    world.route((1, 10_000))
    gateway = world.gateway(idle_timeout_s=0.5)
    with relayed(gateway.url) as (wire, url), connect(Address(url, gateway.key), stream=True) as connection:
        assert connection.recv(10)
        wire.freeze()
        until(lambda: engine.left == 1, 20)
        record = until(lambda: next(iter(world.registry.traffic.window("bot")), None))
    assert (record.status, record.error) == (499, "the client read nothing for 0.5 s")
