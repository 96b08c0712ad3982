"""Connections of the control plane: so many at a time, and each must have sent its request's head in time.

Before the head is there nothing is known of who asks, and no token can be asked for: without a deadline a client that
sends one byte a minute would hold its connection for ever, and a thousand of them every descriptor there is.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from tuneloop.registry.api.problems import problem
from tuneloop.registry.settings import ApiSettings


def guarded(settings: ApiSettings) -> type[H11Protocol]:
    """uvicorn's HTTP protocol under these limits."""
    return type("Guarded", (_Guarded,), {"limits": settings})


class _Guarded(H11Protocol):
    limits: ApiSettings

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            held = f"{self.limits.max_connections} connections are open; ask again in a moment"
            self._end(problem("unavailable", held, {"Retry-After": "1"}))
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The head of the first request is waited for at once, that of a later one from its first byte on."""
        begun = self.cycle is None or bool(self.conn.trailing_data[0])
        if self.conn.their_state is not h11.IDLE or not begun:
            self._stop_watching()
        elif self._head is None:
            self._head = self.loop.call_later(self.limits.header_timeout_s, self._too_late)

    def _stop_watching(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_late(self) -> None:
        waited = f"a request's head must have arrived within {self.limits.header_timeout_s:g} s"
        self._end(problem("timeout", waited))

    def _end(self, answer: Response) -> None:
        """Say why, and close: nobody has asked anything yet that would be cut off."""
        if self.transport.is_closing():
            return
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
