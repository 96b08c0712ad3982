"""The loads: wrk for throughput, and a client of our own for open loops and streams.

The open loop sends by a schedule that no answer can hold up: a request is timed from the moment it was due, also when
every connection is busy, so a system that stalls is charged for all who had to wait (no coordinated omission). One
thread sends, one receives; measured against nginx alone they add about 0.1 ms, which direct and proxied runs share.
"""

from __future__ import annotations

import json
import random
import re
import select
import socket
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from overhead.systems import System

GRACE_S = 3.0  # for answers that are still under way when the last request has been sent
MAX_CONNECTIONS = 512
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_WROTE = re.compile(rb'"t(\d+) ')


def request_of(system: System, *, stream: bool = False, text: str = "What does textwrap.dedent do?") -> bytes:
    """One chat request, as bytes."""
    asked = {"model": system.model, "messages": [{"role": "user", "content": text}], "max_tokens": 64}
    body = json.dumps(asked | {"stream": True} if stream else asked, separators=(",", ":"))
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{system.port}\r\nauthorization: Bearer {system.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


@dataclass
class Closed:
    """What wrk saw."""

    requests: int
    seconds: float
    errors: int
    p50_ms: float
    p99_ms: float


_SCRIPT = """
wrk.method = "POST"
wrk.body = %s
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer %s"
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("@@ %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


def closed_loop(system: System, connections: int, seconds: float, core: int) -> Closed:
    """As many requests as `connections` clients get through, each sending when the last answer is here."""
    body = request_of(system).decode().partition("\r\n\r\n")[2]
    script = system.folder / "load.lua"
    script.write_text(_SCRIPT % ("[[" + body + "]]", system.key))
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s"]
    url = f"http://127.0.0.1:{system.port}/v1/chat/completions"
    told = subprocess.run([*command, "-s", script, url], check=True, capture_output=True, text=True).stdout
    requests, micros, errors, p50, p99 = map(int, told.partition("@@")[2].split())
    return Closed(requests, micros / 1e6, errors, p50 / 1e3, p99 / 1e3)


@dataclass
class Latencies:
    """Times of an open loop or of events, and what went wrong."""

    ms: list[float] = field(default_factory=list)
    due: int = 0
    failed: int = 0

    @property
    def sustained(self) -> bool:
        """Whether all but 1 % was answered in time."""
        return self.due > 0 and len(self.ms) >= 0.99 * self.due

    def quantile(self, q: float) -> float:
        """In milliseconds; infinite when there is nothing."""
        return sorted(self.ms)[min(len(self.ms) - 1, int(q * len(self.ms)))] if self.ms else float("inf")

    def add(self, other: Latencies) -> None:
        """Pool with another round's."""
        self.ms += other.ms
        self.due += other.due
        self.failed += other.failed


class OpenLoop:
    """Requests at moments drawn beforehand (a Poisson process)."""

    def __init__(self, system: System, request: bytes, rate: float, seconds: float, seed: int) -> None:
        self._address = ("127.0.0.1", system.port)
        self._request = request
        draw = random.Random(seed)
        self._due, at = [], 0.0
        while (at := at + draw.expovariate(rate)) < seconds:
            self._due.append(at)
        self._idle: deque[socket.socket] = deque()
        self._free = threading.Condition()
        self._open = 0
        self._waiting: dict[int, tuple[socket.socket, float, bytearray]] = {}
        self._epoll = select.epoll()
        self.found = Latencies(due=len(self._due))
        self._stop_at = float("inf")

    def run(self) -> Latencies:
        """Send all, wait a little for the last answers."""
        receiver = threading.Thread(target=self._receive)
        for _ in range(16):
            self._idle.append(self._connected())
        receiver.start()
        began = time.perf_counter() + 0.05
        for due in self._due:
            if (wait := began + due - time.perf_counter()) > 0:
                time.sleep(wait)
            connection = self._connection(began + self._due[-1] + GRACE_S)
            if connection is None:
                break
            self._waiting[connection.fileno()] = (connection, began + due, bytearray())
            try:
                sent = connection.send(self._request)
                if sent < len(self._request):  # a long prompt
                    connection.setblocking(True)
                    connection.sendall(self._request[sent:])
                    connection.setblocking(False)
            except OSError:
                self._lost(connection)
        self._stop_at = time.perf_counter() + GRACE_S
        receiver.join()
        for connection in [*self._idle, *(one for one, *_ in self._waiting.values())]:
            connection.close()
        self._epoll.close()
        return self.found

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        self._open += 1
        return connection

    def _connection(self, until: float) -> socket.socket | None:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        if self._open < MAX_CONNECTIONS:
            return self._connected()
        with self._free:
            while not self._idle:
                if time.perf_counter() > until:
                    return None
                self._free.wait(0.1)
            return self._idle.pop()

    def _receive(self) -> None:
        while (self._waiting or self._stop_at == float("inf")) and time.perf_counter() < self._stop_at:
            for descriptor, _ in self._epoll.poll(0.1):
                waiting = self._waiting.get(descriptor)
                if waiting is None:
                    continue
                connection, due, got = waiting
                try:
                    data = connection.recv(262_144)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                now = time.perf_counter()
                if not data:
                    self._lost(connection)
                    continue
                got += data
                if is_whole(got):
                    del self._waiting[descriptor]
                    if got.startswith(b"HTTP/1.1 200"):
                        self.found.ms.append((now - due) * 1e3)
                    else:
                        self.found.failed += 1
                    self._idle.append(connection)
                    if self._open >= MAX_CONNECTIONS:
                        with self._free:
                            self._free.notify()

    def _lost(self, connection: socket.socket) -> None:
        self._waiting.pop(connection.fileno(), None)
        self.found.failed += 1
        self._open -= 1
        connection.close()


def is_whole(got: bytearray) -> bool:
    """Whether an HTTP response is here to its end."""
    head = got.find(b"\r\n\r\n")
    if head < 0:
        return False
    if length := _LENGTH.search(got, 0, head):
        return len(got) >= head + 4 + int(length[1])
    return got.endswith(b"0\r\n\r\n")


def streams(system: System, concurrent: int, seconds: float) -> Latencies:
    """Delays of events, from the engine's writing to our reading, of so many streams at a time; the first second of
    starting them is left out."""
    request = request_of(system, stream=True)
    epoll = select.epoll()
    connections: dict[int, socket.socket] = {}
    tails: dict[int, bytes] = {}
    ends: dict[int, bytes] = {}
    found = Latencies()
    began = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds + 1.0:
        wanted = min(concurrent, int((now - began) * concurrent) + 1)  # all within one second
        while len(connections) < wanted:
            connection = socket.create_connection(("127.0.0.1", system.port))
            connection.setblocking(False)
            epoll.register(connection.fileno(), select.EPOLLIN)
            connections[connection.fileno()] = connection
            tails[connection.fileno()] = ends[connection.fileno()] = b""
            connection.send(request)
        measures = now > began + 1.0
        for descriptor, _ in epoll.poll(0.01):
            connection = connections[descriptor]
            try:
                data = connection.recv(65_536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            read_ns = time.monotonic_ns()
            if not data:
                found.failed += 1
                del connections[descriptor]
                connection.close()
                continue
            text = tails[descriptor] + data
            if measures:
                found.ms += [(read_ns - int(match[1])) / 1e6 for match in _WROTE.finditer(text)]
            end = text.rfind(b'"t')
            tails[descriptor] = b"" if end < 0 or _WROTE.match(text, end) else text[end:]
            ends[descriptor] = (ends[descriptor] + data)[-5:]
            if ends[descriptor] == b"0\r\n\r\n":
                connection.send(request)
    found.due = int(concurrent * seconds * 50)
    for connection in connections.values():
        connection.close()
    epoll.close()
    return found
