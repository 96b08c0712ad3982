"""The gateway put together: one ASGI application, with the threads and the worker process behind it.

Completions take a bare ASGI path, everything else goes through FastAPI. Every response carries x-request-id, those to
requests that are none (400, 408, 431) too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from tuneloop.registry.nouns import GatewayState, Route, utc_now
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway import rest
from tuneloop.serve.gateway.admission.admission import Admission
from tuneloop.serve.gateway.body import PATHS
from tuneloop.serve.gateway.collecting import settle
from tuneloop.serve.gateway.completions import Completions
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.exchange import Exchange, new_request_id
from tuneloop.serve.gateway.guarding import Guarding
from tuneloop.serve.gateway.http import Receive, Scope, Send, send_json
from tuneloop.serve.gateway.link import Link
from tuneloop.serve.gateway.load import Load
from tuneloop.serve.gateway.metrics import Metrics
from tuneloop.serve.gateway.records import Recorder
from tuneloop.serve.gateway.refresh import Refresh
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.shadows import Shadows
from tuneloop.serve.gateway.snapshot import Snapshot
from tuneloop.serve.gateway.tracing import Tracing

log = logging.getLogger(__name__)
REGISTRY_UP_WITHIN_S = 5.0


class Gateway:
    """One gateway; `folder` is its own, for what must survive it."""

    def __init__(
        self, settings: GatewaySettings, registry: RegistrySettings, draw: Callable[[], float] = random.random
    ) -> None:
        """`draw` (0 to below 1) says which engines are compared."""
        self.settings = settings
        self.folder = gateway_folder(registry, settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._link = Link(registry)
        self._metrics = Metrics(settings.prices)
        self._load = Load()
        self._guarding = Guarding(settings, self._metrics)
        self._recorder = Recorder(settings, self._link, self.folder / "spool", self._metrics)
        self._tracing = Tracing(settings, self._metrics.spans_dropped.inc, random.Random())
        self._refresh = Refresh(
            self._link, self.folder, settings.poll_s, self._beat, self._applies, self._metrics.part_failed
        )
        self._admission = Admission(
            settings,
            self._link,
            lambda: self._refresh.snapshot,
            self._metrics.limited,
            self._metrics.shed,
            self._metrics.waited,
            lambda: self._recorder.stored_until_s,
        )
        self._metrics.watch_admission(self._admission)
        self._shadows = Shadows(
            settings,
            lambda: self._refresh.snapshot,
            self._load,
            lambda: self._admission.turns.waiting,
            self._shadow_finished,
            self._metrics.shadow_dropped,
        )
        self._completions = Completions(
            settings,
            lambda: self._refresh.snapshot,
            self._load,
            self._guarding,
            self._admission,
            self._shadows,
            self._tracing,
            self._finished,
            self._metrics,
            draw,
        )
        self._rest = rest.build(
            rest.Services(
                settings=settings,
                recorder=self._recorder,
                authenticate=lambda scope: self._completions.authenticate(scope, utc_now()),
                count=self._admission.count,
                routes=self._routes,
                not_ready=self.not_ready,
                last_known=lambda: self._refresh.trouble,
                unsaved=lambda: self._refresh.unsaved,
                metrics=self._metrics.text,
            )
        )
        self._metrics.watch(
            pending=lambda: self._recorder.pending,
            registry_up=lambda: self._refresh.up(REGISTRY_UP_WITHIN_S),
            view_unsaved=lambda: bool(self._refresh.unsaved),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] in PATHS:
            if scope["method"] == "POST":
                await self._completions(scope, receive, send)
            else:
                await _only_post(scope, send)
        elif scope["type"] == "http":
            await self._rest(scope, receive, _with_request_id(send))
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    def not_ready(self) -> str:
        """Why this gateway cannot serve; empty when it can."""
        if self._refresh.snapshot is not None:
            return ""
        why = "; ".join(dict.fromkeys(self._refresh.trouble.values()))
        if not why:
            return "the first reading of the registry is under way"
        return f"nothing to serve yet: {why}; and {self._refresh.no_last_view}"

    async def start(self) -> None:
        """Start what stands behind the request path."""
        await self._completions.start()
        await self._shadows.start()
        self._refresh.start(asyncio.get_running_loop())
        self._admission.sharing.start(asyncio.get_running_loop())
        self._recorder.start()
        self._tracing.start()
        settle()

    async def stop(self) -> None:
        """Store every record, leave the registry's list, close every connection."""
        await self._shadows.stop()
        await asyncio.to_thread(self._recorder.stop, self.settings.drain_s)
        await asyncio.to_thread(self._tracing.stop)
        await asyncio.to_thread(self._admission.sharing.stop)
        await asyncio.to_thread(self._refresh.stop)
        await self._completions.stop()
        await asyncio.to_thread(self._guarding.stop)
        self._link.close()

    def _routes(self) -> dict[str, Route]:
        return dict(self._refresh.snapshot.routes) if self._refresh.snapshot else {}

    def _finished(self, exchange: Exchange) -> None:
        self._metrics.finished(exchange)
        self._tracing.finished(exchange)
        self._recorder.add(exchange)

    def _shadow_finished(self, exchange: Exchange) -> None:
        if self._recorder.is_half_full:
            self._metrics.shadow_dropped(exchange.plan.route.model if exchange.plan else "", "records")
        else:
            self._recorder.add(exchange)
            self._metrics.shadow_finished(exchange)

    def _applies(self, snapshot: Snapshot, after_gap: bool) -> None:
        self._guarding.applies(snapshot)
        self._metrics.applies(snapshot, after_gap=after_gap)

    def _beat(self, snapshot: Snapshot) -> GatewayState:
        return GatewayState(
            id=self.settings.effective_id,
            url=self.settings.url,
            applied=snapshot.applied,
            in_flight=self._load.in_flight(),
            dropped_records=self._recorder.dropped,
            at=utc_now(),
        )

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})


def gateway_folder(registry: RegistrySettings, settings: GatewaySettings) -> Path:
    """Where a gateway keeps its last known good view and its spool."""
    return registry.home / "gateway" / settings.effective_id


async def _only_post(scope: Scope, send: Send) -> None:
    error = ApiError(405, f"{scope['method']} {scope['path']}: use POST", code="method_not_allowed")
    headers = [(b"x-request-id", new_request_id().encode()), (b"allow", b"POST")]
    await send_json(send, error.status, error.body, headers)


def _with_request_id(send: Send) -> Send:
    request_id = (b"x-request-id", new_request_id().encode())

    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), request_id]}
        await send(message)

    return wrapped
