"""Stub engines fast enough not to matter: nginx for whole answers, a small asyncio server for streams.

nginx answers every POST with one fixed completion (60,000 requests/s and more of one core). The stream server says 50
words 20 ms apart, each the moment of its writing in nanoseconds of the monotonic clock, which a client on the same
machine can subtract from its own. Streams are spread over the 20 ms, so that no burst of the engine's own is measured.

    python benchmarks/overhead/engine.py PORT
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path

import uvloop

EVENTS = 50
GAP_MS = 20
ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"bot@1","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"It does what its name says, and it does it twice."},'
    '"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"total_tokens":24,"completion_tokens":12}}'
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MODEL = re.compile(rb'"model": ?"([^"]+)"')


def nginx_engine(port: int, folder: Path) -> Path:
    """The configuration of an nginx that answers at once; requests are read and thrown away."""
    models = '{"object":"list","data":[{"id":"bot@1","object":"model"},{"id":"bot@2","object":"model"}]}'
    path = folder / "engine.conf"
    path.write_text(
        nginx_frame(
            folder,
            "engine",
            f"""
    server {{
        listen 127.0.0.1:{port} reuseport backlog=4096;
        client_max_body_size 0;
        client_body_buffer_size 256k;
        location = /health {{ return 200 ""; }}
        location = /v1/models {{ default_type application/json; return 200 '{models}'; }}
        location / {{ default_type application/json; return 200 '{ANSWER}'; }}
    }}""",
        )
    )
    return path


def nginx_frame(folder: Path, name: str, http: str) -> str:
    """An nginx of one worker that logs nothing and keeps connections."""
    return f"""worker_processes 1;
daemon off;
pid {folder}/{name}.pid;
error_log {folder}/{name}.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 300;
    tcp_nodelay on;
    client_body_temp_path {folder}/{name}-body;
    proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-f;
    uwsgi_temp_path {folder}/{name}-u;
    scgi_temp_path {folder}/{name}-s;
{http}
}}
"""


class Clockwork:
    """Writes the events of every stream that is due, millisecond by millisecond."""

    def __init__(self) -> None:
        self._slots: list[dict[Stream, None]] = [{} for _ in range(GAP_MS)]
        self._next = 0

    def join(self, stream: Stream) -> None:
        """From now on, every 20 ms; the slot with the fewest others."""
        min(self._slots, key=len)[stream] = None

    async def run(self) -> None:
        """For ever."""
        began = time.monotonic()
        while True:
            slot = self._slots[self._next % GAP_MS]
            for stream in [stream for stream in slot if not stream.write_event()]:
                del slot[stream]
            self._next += 1
            wait = began + self._next / 1e3 - time.monotonic()
            await asyncio.sleep(max(0.0, wait))


class Stream(asyncio.Protocol):
    """One connection: a request, its events, the next request."""

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork
        self._bytes = bytearray()
        self._left = 0
        self._before = b""
        self._gone = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is another class
        self._transport = transport
        self._descriptor = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        end = self._bytes.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._bytes, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._bytes) < whole:
            return
        model = _MODEL.search(self._bytes, end)
        get = self._bytes.startswith(b"GET")
        del self._bytes[:whole]
        if get or model is None:
            body = b'{"object":"list","data":[]}'
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
            return
        self._before = (
            b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"%s","choices":'
            b'[{"index":0,"delta":{"content":"t' % model[1]
        )
        self._left = EVENTS
        os.write(self._descriptor, _HEAD)
        self._clockwork.join(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's own signature)
        self._gone = True

    def write_event(self) -> bool:
        """The next event; False when it was the last."""
        if self._gone:
            return False
        event = b'%s%d "},"logprobs":null,"finish_reason":null}]}\n\n' % (self._before, time.monotonic_ns())
        self._left -= 1
        text = b"%x\r\n%s\r\n" % (len(event), event)
        if not self._left:
            usage = self._before.partition(b'"choices"')[0] + (
                b'"choices":[],"usage":{"prompt_tokens":7,"total_tokens":57,"completion_tokens":50}}\n\n'
            )
            last = usage + b"data: [DONE]\n\n"
            text += b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last)
        try:
            os.write(self._descriptor, text)
        except OSError:  # the client has left, or does not read
            self._transport.abort()
            return False
        return bool(self._left)


async def main() -> None:
    """Serve until killed."""
    clockwork = Clockwork()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stream(clockwork), "127.0.0.1", int(sys.argv[1]), backlog=4_096)
    async with server:
        await clockwork.run()


if __name__ == "__main__":
    uvloop.run(main())
