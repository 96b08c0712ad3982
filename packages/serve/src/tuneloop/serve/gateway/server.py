"""A gateway as a process: its socket, its folder's lock, uvicorn around it, and an orderly end on SIGTERM."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.background import take_short_turns
from tuneloop.serve.gateway.app import Gateway, gateway_folder
from tuneloop.serve.gateway.protocol import GatewayProtocol
from tuneloop.serve.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)
SWITCH_INTERVAL_S = 0.000_2  # how long a request may wait for a thread that stores records; Python's own is 5 ms
KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that the client closes first


def serve(settings: GatewaySettings, registry: RegistrySettings) -> None:
    """Run until SIGTERM or Ctrl-C: then accept nothing new, let streams end, store every record.

    Raises:
        InvalidInput: the address, or this gateway's folder, cannot be used on this machine.
        Unavailable: the port, or this gateway's folder, is taken.
    """
    with listening(settings.host, settings.port) as listener:
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        with locked(gateway_folder(registry, settings), settings.effective_id):
            server = uvicorn.Server(config(settings, registry))
            for number in (
                signal.SIGTERM,
                signal.SIGINT,
            ):  # uvicorn raises them again when it has ended; that is no failure
                signal.signal(number, lambda *_: None)
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            take_short_turns()
            log.info("gateway %s listens on %s", settings.effective_id, settings.url)
            server.run(sockets=[listener])
            log.info("gateway %s has ended", settings.effective_id)


def config(
    settings: GatewaySettings, registry: RegistrySettings, draw: Callable[[], float] = random.random
) -> uvicorn.Config:
    """How uvicorn runs a gateway; `draw` (0 to below 1) says which engines are compared."""

    class Protocol(GatewayProtocol):
        unread_timeout_s = settings.idle_timeout_s

    return uvicorn.Config(
        Gateway(settings, registry, draw),
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=2_048,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket.

    Raises:
        InvalidInput: no such address here.
        Unavailable: somebody listens on that port.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise InvalidInput(f"gateway host {host!r}: {error.strerror}; give an address of this machine") from None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise Unavailable(
                f"gateway cannot listen on {host}:{port}: {reason}; stop what listens there or choose another "
                "port: --port, TUNELOOP_GATEWAY_PORT, or port under [gateway] in tuneloop.toml"
            ) from None
        yield listener


@contextmanager
def locked(folder: Path, gateway_id: str) -> Iterator[None]:
    """This folder for one process.

    Raises:
        InvalidInput: it cannot be made or written.
        Unavailable: another gateway goes by the same id.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise InvalidInput(
            f"gateway folder {folder}: {error.strerror}; it must be a folder this user may write, below `home` "
            "(`tuneloop config` shows where that comes from)"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                f"a gateway with the id {gateway_id!r} runs already ({folder}); choose another --id"
            ) from None
        yield
