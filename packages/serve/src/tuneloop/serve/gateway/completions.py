"""The hot path: POST /v1/chat/completions and the other paths that engines answer (`body.PATHS`), on bare ASGI.

Order: API key → body → checks → route and version → limits of the key → its turn → guards → engine → bytes through →
record. Nothing here waits for database, MLflow or disk. Until the engine's first event (or its whole answer, when not
streaming) is here, nothing is committed to the client and one other attempt may be made; afterwards never. A client
that leaves cancels the engine's work at once.

The `model` of an answer is what the client asked for; the version that answered stands in the header
x-tuneloop-version.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial

from tuneloop.registry.nouns import ApiKey
from tuneloop.serve.gateway.admission.admission import Admission
from tuneloop.serve.gateway.admission.estimate import tokens_of
from tuneloop.serve.gateway.attempts import Attempts
from tuneloop.serve.gateway.body import PATHS, Ask, Limits, read
from tuneloop.serve.gateway.errors import CLIENT_CLOSED_REQUEST, ApiError, bad_request
from tuneloop.serve.gateway.exchange import Exchange, KeySource
from tuneloop.serve.gateway.guarding import Guarding
from tuneloop.serve.gateway.hangs import Hangs
from tuneloop.serve.gateway.http import (
    SCOPE_OF,
    ClientLeft,
    Receive,
    Scope,
    Send,
    bearer,
    check_scope,
    headers_of,
    read_body,
    said_in,
    send_json,
    send_part,
    unauthorized,
)
from tuneloop.serve.gateway.line import LINE, Line
from tuneloop.serve.gateway.load import Load, RetryBudget
from tuneloop.serve.gateway.metrics import Metrics
from tuneloop.serve.gateway.responses.events import error_event
from tuneloop.serve.gateway.routing import pick, plan
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.shadows import Shadows
from tuneloop.serve.gateway.snapshot import Snapshot, Target
from tuneloop.serve.gateway.tracing import Tracing
from tuneloop.serve.gateway.upstream import EngineFailure

log = logging.getLogger(__name__)
MAX_UNIT_BYTES = 512


class Completions:
    """Answers completion requests; one per event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        snapshot: Callable[[], Snapshot | None],
        load: Load,
        guarding: Guarding,
        admission: Admission,
        shadows: Shadows,
        tracing: Tracing,
        finished: Callable[[Exchange], None],
        metrics: Metrics,
        draw: Callable[[], float],
    ) -> None:
        """`draw` (0 to below 1) says which engines are compared."""
        self._settings = settings
        self._snapshot = snapshot
        self._load = load
        self._guarding = guarding
        self._admission = admission
        self._shadows = shadows
        self._tracing = tracing
        self._finished = finished
        self._metrics = metrics
        self._draw = draw
        self._limits = Limits(settings.max_prompt_chars, settings.max_tokens, settings.max_choices)
        self._budget = RetryBudget(settings.retry_share)
        self._running: Attempts | None = None
        self._hangs: Hangs | None = None

    async def start(self) -> None:
        """Make the connection pool; needs the running loop."""
        self._running = Attempts(self._settings, self._load, self._metrics)
        self._hangs = Hangs(self._load, self._urls)

    async def stop(self) -> None:
        """Close the connections to the engines."""
        if self._hangs is not None:
            await self._hangs.close()
        await self._attempts.close()

    def _urls(self) -> dict[str, str]:
        snapshot = self._snapshot()
        return {} if snapshot is None else {engine.id: engine.url for engine in snapshot.engines}

    @property
    def _attempts(self) -> Attempts:
        assert self._running is not None, "start() comes first"
        return self._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        exchange = Exchange(PATHS[scope["path"]])
        line: Line = scope[LINE]
        try:
            await self._answered(scope, receive, send, exchange, line)
        except ClientLeft:
            exchange.failed(CLIENT_CLOSED_REQUEST, "the client left before it had sent its request")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not exchange.left or task is None:  # the gateway is stopping and its time is up
                exchange.failed(503, "the gateway stopped")
                raise
            task.uncancel()
            exchange.failed(CLIENT_CLOSED_REQUEST, line.why_left)
        finally:
            line.on_left = None
            self._admission.leave(exchange)
            exchange.total_ms = exchange.elapsed_ms()
            self._finished(exchange)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, line: Line) -> None:
        """Give the client an answer or an error, whatever happens here."""
        try:
            key = self.authenticate(scope, exchange.at)
            exchange.api_key = key.id
            check_scope(key, SCOPE_OF[exchange.endpoint])
            limit, timeout_s = self._settings.max_body_bytes, self._settings.body_timeout_s
            body = await read_body(scope, receive, limit=limit, timeout_s=timeout_s)
            line.on_left = partial(_left, exchange, asyncio.current_task(self._attempts.loop))
            await self._answer(scope, send, exchange, key, body)
        except ApiError as error:
            exchange.failed(error.status, exchange.error or error.message)
            await _end_with(send, exchange, error)
        except ClientLeft:
            raise
        except Exception:
            log.exception("request %s", exchange.id, extra={"request_id": exchange.id})
            exchange.failed(500, "a defect of the gateway; its log has the cause")
            sorry = ApiError(500, f"internal error; ask about {exchange.id}", code="internal_error")
            await _end_with(send, exchange, sorry)

    def authenticate(self, scope: Scope, now: datetime) -> ApiKey:
        """The API key of a request that came now.

        Raises:
            ApiError: 401, it is missing or may not be used.
        """
        snapshot = self._view()
        key = snapshot.key(bearer(scope), now)
        if key is None:
            raise unauthorized("this API key is unknown, expired or revoked; `tuneloop key new` makes another")
        return key

    def _view(self) -> Snapshot:
        snapshot = self._snapshot()
        if snapshot is None:
            raise ApiError(
                503,
                "the gateway has not read its routes yet; its /readyz says why",
                code="not_ready",
                retry_after_s=1,
            )
        return snapshot

    async def _answer(self, scope: Scope, send: Send, exchange: Exchange, key: ApiKey, body: bytes) -> None:
        ask = read(body, exchange.endpoint, self._limits)
        exchange.asked, exchange.stream, exchange.messages = ask.asked, ask.stream, ask.messages
        headers = headers_of(scope)
        exchange.unit, exchange.unit_source = _unit(headers.get(b"x-tuneloop-unit"), ask, key)
        exchange.client_id = headers.get(b"x-client-request-id") or headers.get(b"x-request-id") or b""
        self._tracing.begin(exchange, headers.get(b"traceparent"))
        planned = plan(self._view(), ask.asked, key, exchange.unit)
        await self._admission.enter(exchange, key, ask, planned.route.model)
        exchange.plan = planned  # from here on it is recorded
        if (guard := self._guarding.of(exchange)) is not None:
            ask = await guard.admit(exchange, ask)
        if planned.route.shadow is not None:
            self._shadows.copy(exchange, ask)
        self._budget.earn()
        if len(self._view().engines) > 1:
            exchange.tokens = tokens_of(ask, self._settings.reserve_tokens)
        target = self._pick(exchange)
        try:
            await self._attempts.run(scope[LINE], send, exchange, ask, target)
        except EngineFailure as failure:
            other = self._other(exchange, target, failure)
            try:
                await self._attempts.run(scope[LINE], send, exchange, ask, other)
            except EngineFailure as again:
                exchange.error = again.detail
                raise again.error from None

    def _pick(self, exchange: Exchange, *, avoid: Collection[str] = (), never: str = "") -> Target:
        assert exchange.plan is not None
        route, versions = exchange.plan.route, exchange.plan.versions
        avoid = self._load.aside().union(avoid)
        target = pick(
            self._view(),
            route.model,
            versions,
            self._load.tokens,
            avoid=avoid,
            shun=self._load.shunned(),
            never=never,
            draw=self._draw,
            messages=exchange.messages,
            allowance=self._settings.affinity_tokens,
        )
        if target is None:
            message = f"no engine serves {route.model} now; try again in a few seconds"
            if not self._view().engines:
                message = "no engine is live; start one with `tuneloop engine` or `tuneloop up`"
            raise ApiError(503, message, code="no_engine_ready", retry_after_s=2)
        return target

    def _other(self, exchange: Exchange, target: Target, failure: EngineFailure) -> Target:
        """Where to try once more: another engine if there is one, else the same again where that may help.

        Raises:
            ApiError: nowhere, or the retries are used up.
        """
        exchange.error = failure.detail
        if failure.retry == "never":
            raise failure.error from None
        try:
            never = target.slot if failure.retry == "elsewhere" else ""
            other = self._pick(exchange, avoid={target.engine}, never=never)
        except ApiError:
            raise failure.error from None
        if not self._budget.spend():
            raise failure.error from None
        self._metrics.retried(exchange.plan.route.model if exchange.plan else "")
        about = {"request_id": exchange.id}
        log.warning("request %s goes to %s after: %s", exchange.id, other.slot, failure.logged, extra=about)
        return other


def _left(exchange: Exchange, task: asyncio.Task[None] | None) -> None:
    """The client went away: cancel the request's task."""
    if exchange.delivered:
        return
    exchange.left = True
    if task is not None:
        task.cancel()


async def _end_with(send: Send, exchange: Exchange, error: ApiError) -> None:
    """Tell the client: by status before anything was committed, by an event afterwards."""
    if not exchange.committed:
        await send_json(send, error.status, error.body, [*exchange.headers(), *error.headers])
        return
    told = b"data: " + error.body
    if exchange.endpoint == "response":
        told = error_event(error, exchange.numbered)
    await send_part(send, told + b"\n\n", more=True)
    await send_part(send, b"", more=False)


def _unit(sent: bytes | None, ask: Ask, key: ApiKey) -> tuple[str, KeySource]:
    """The sticky key and where it came from; `sent` is what stands in the header."""
    if sent is not None and len(sent) > MAX_UNIT_BYTES:
        raise bad_request(f"the header x-tuneloop-unit is longer than {MAX_UNIT_BYTES} bytes")
    if sent:
        return said_in(sent), "header"
    return (ask.user, "user") if ask.user else (key.id, "api_key")
