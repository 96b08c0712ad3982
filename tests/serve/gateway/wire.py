"""A line that can be cut or frozen: a TCP relay. Cut, it refuses and resets, as a lost machine's router does; frozen,
what is open stays open and nothing comes through, as when a machine is gone without a word.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from tests_support import free_port


class Wire:
    """Relays a local port to another one while it is whole."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._flows = threading.Event()
        self._flows.set()
        self.port = free_port()

    def mend(self) -> None:
        """Let connections through."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Reset what is open, refuse what is new."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._flows.set()

    def freeze(self) -> None:
        """Let nothing through what is open, and end nothing, until it is cut."""
        self._flows.clear()

    def thaw(self) -> None:
        """Let through what waited, and what comes."""
        self._flows.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                if self._listener is not listener:  # it was cut meanwhile
                    near.close()
                    far.close()
                    return
                self._ends |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                self._flows.wait()
                sink.sendall(data)
        except OSError:
            pass
        with self._lock:
            both_over = source not in self._ends or sink not in self._ends
            self._ends.discard(source)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        if both_over:
            source.close()
            sink.close()
