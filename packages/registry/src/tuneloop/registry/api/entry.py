"""What every request passes first: its token, its rate, and the size and time of its body.

Plain ASGI, before any routing: without a valid token nothing of the API is seen, nothing of a body is parsed. A token
that is unknown, expired, revoked or misspelt gets the same answer. Failures are counted, and told in the log once a
minute; a flood of them writes nothing to the database.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from collections.abc import Callable

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneloop.registry.access.tokens import Token
from tuneloop.registry.api.limits import Buckets
from tuneloop.registry.api.problems import kind_of, problem
from tuneloop.registry.errors import TuneloopError
from tuneloop.registry.facade import Registry
from tuneloop.registry.settings import ApiSettings

PREFIX = "/v1"
_LOOKUPS = 2  # token look-ups at a time, of threads of their own: writes that wait for gateways hold up nobody's
_TELL_EVERY_S = 60.0
_log = logging.getLogger(__name__)


class Entry:
    """The ASGI middleware."""

    def __init__(self, app: ASGIApp, registry: Registry, settings: ApiSettings, monotonic: Callable[[], float]) -> None:
        self._app = app
        self._registry = registry
        self._settings = settings
        self._clock = monotonic
        self._rates = Buckets(settings.rate_per_s, settings.burst, monotonic)
        per_minute = settings.failures_per_minute
        self._failures = Buckets(per_minute / 60, max(1.0, per_minute), monotonic)
        self._lookups: CapacityLimiter | None = None
        self._failed, self._told_at_s = 0, monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        send = _unstored(send)
        if path == PREFIX or path.startswith(f"{PREFIX}/"):
            refused = await self._admit(scope)
            if refused is not None:
                await refused(scope, receive, send)
                return
        body = await self._body(scope, receive)
        if isinstance(body, Response):
            await body(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    async def _admit(self, scope: Scope) -> Response | None:
        kind, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            token = await self._holder(secret.strip()) if kind.lower() == "bearer" else None
        except TuneloopError as error:
            _log.error("a token cannot be looked up: %s", error)
            return problem(kind_of(error), "tokens cannot be looked up: the database does not answer")
        if token is None:
            return self._not_admitted(scope)
        if wait_s := self._rates.take(token.name):
            return _too_many(f"{token.name} asks more often than {self._settings.rate_per_s:g} times a second", wait_s)
        scope.setdefault("state", {})["token"] = token
        return None

    async def _holder(self, secret: str) -> Token | None:
        if self._lookups is None:
            self._lookups = CapacityLimiter(_LOOKUPS)
        return await anyio.to_thread.run_sync(self._registry.tokens.holder, secret, limiter=self._lookups)

    def _not_admitted(self, scope: Scope) -> Response:
        address = network_of((scope.get("client") or ("unknown", 0))[0])
        self._failed += 1
        if self._clock() - self._told_at_s >= _TELL_EVERY_S:
            _log.warning("%d requests without a valid token, the last from %s", self._failed, address)
            self._failed, self._told_at_s = 0, self._clock()
        if wait_s := self._failures.take(address):
            return _too_many("too many requests without a valid token from this address", wait_s)
        return problem(
            "unauthenticated",
            "give a token that is neither expired nor revoked: `Authorization: Bearer tlt-…`; "
            "`tuneloop token new NAME --role viewer --reason WHY` makes one",
            {"WWW-Authenticate": 'Bearer realm="tuneloop"'},
        )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        most = self._settings.max_body_bytes
        too_large = problem("too-large", f"a body may have {most} bytes", {"Connection": "close"})
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > most:
            return too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > most:
                        return too_large
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            waited = f"a body must have arrived within {self._settings.body_timeout_s:g} s"
            return problem("timeout", waited, {"Connection": "close"})


def network_of(address: str) -> str:
    """Whose failures are counted together: an IPv4 address, or the /64 that one IPv6 client has to itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped
        return str(ipaddress.ip_network((parsed, 64), strict=False)) if inner is None else str(inner)
    return str(parsed)


def _too_many(why: str, wait_s: float) -> Response:
    seconds = max(1, math.ceil(wait_s))
    return problem("rate-limited", f"{why}; ask again in {seconds} s", {"Retry-After": str(seconds)})


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _unstored(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Cache-Control"] = "no-store"
        await send(message)

    return sent
