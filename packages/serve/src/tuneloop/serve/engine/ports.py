"""A port belongs to one engine: found out before a minute of loading, and held while vLLM is away.

vLLM listens with SO_REUSEPORT, so two of them on one port would both start and share the requests, and each agent would
unload what the other loaded.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from tuneloop.registry.errors import Conflict, InvalidInput


@contextmanager
def hold_port(port: int) -> Iterator[None]:
    """Keep other agents of this machine off the port, also while no vLLM listens; ends with the process in any case.

    Raises:
        Conflict: another agent holds it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(f"\0tuneloop-engine-{port}")  # an abstract name: the kernel forgets it with its holder
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise Conflict(
                f"port {port} is taken{_owner(port) or ' by another engine agent whose vLLM is not up at the moment'}; "
                "stop it or give another --port"
            ) from None
        yield


def ensure_port_free(host: str, port: int) -> None:
    """Find out before a minute of loading that the port is taken.

    Raises:
        Conflict: names the process that listens there, where that can be known.
        InvalidInput: the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise InvalidInput(f"cannot listen on {host}:{port}: {error.strerror}; give another --host") from None
            owner = "may not be used by this user" if error.errno == errno.EACCES else f"is taken{_owner(port)}"
            raise Conflict(f"port {port} on {host} {owner}; stop what listens there or give another --port") from None


def listens(process: psutil.Process, port: int) -> bool:
    """Whether a process listens on the port."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # gone, or somebody else's: not ours
        return any(_is_listening(connection, port) for connection in process.net_connections("tcp"))
    return False


def _owner(port: int) -> str:
    with contextlib.suppress(psutil.AccessDenied):  # other users' sockets may be hidden from us
        for connection in psutil.net_connections("tcp"):
            if connection.pid and _is_listening(connection, port):
                with contextlib.suppress(psutil.NoSuchProcess):
                    return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def _is_listening(connection: Any, port: int) -> bool:
    return connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:2] == (port,)
