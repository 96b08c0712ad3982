"""The control plane as a process: its socket, uvicorn around it, and an orderly end on SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tuneloop.registry.api.app import make_app
from tuneloop.registry.api.connections import guarded
from tuneloop.registry.errors import InvalidInput, TuneloopError, Unavailable
from tuneloop.registry.facade import Registry
from tuneloop.registry.fleet import Fleet
from tuneloop.registry.settings import ApiSettings, RegistrySettings
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within

log = logging.getLogger(__name__)
KEEP_ALIVE_S = 75


def serve(settings: ApiSettings, registry_settings: RegistrySettings) -> None:
    """Run until SIGTERM or Ctrl-C: then accept nothing new, and let requests end.

    Raises:
        InvalidInput: the address cannot be used on this machine.
        Unavailable: the port is taken, or the database does not answer.
    """
    with Registry.open(registry_settings) as registry, listening(settings.host, settings.port) as listener:
        server = Server(config(settings, registry), registry.fleet)
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended; no failure
            signal.signal(number, lambda *_: None)
        host, port = listener.getsockname()[:2]
        threading.Thread(target=_warm, args=(registry,), name="warm", daemon=True).start()
        log.info("the control plane listens on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        server.run(sockets=[listener])
        log.info("the control plane has ended")


def _warm(registry: Registry) -> None:
    """Import MLflow's client and connect it, seconds that whoever asks first would wait for."""
    try:
        mlflow_within(registry, registry.versions.models, LOOKUP_TIMEOUT_S)
    except TuneloopError as error:  # everything else is answered without it
        log.warning("MLflow does not answer yet: %s", error)


class Server(uvicorn.Server):
    """uvicorn, whose end also ends the longest of waits: that for an engine, after which the route is as it was."""

    def __init__(self, config: uvicorn.Config, fleet: Fleet) -> None:
        super().__init__(config)
        self._fleet = fleet

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing new, and let requests end."""
        self._fleet.stop_waiting()
        await super().shutdown(sockets)


def config(settings: ApiSettings, registry: Registry) -> uvicorn.Config:
    """How uvicorn runs it."""
    return uvicorn.Config(
        make_app(registry, settings),
        http=guarded(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
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
        raise InvalidInput(f"api host {host!r}: {error.strerror}; give an address of this machine") from None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise Unavailable(
                f"the control plane cannot listen on {host}:{port}: {reason}; stop what listens there or choose "
                "another port: --port, TUNELOOP_API_PORT, or port under [api] in tuneloop.toml"
            ) from None
        yield listener
