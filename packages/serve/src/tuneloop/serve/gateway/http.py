"""The few HTTP things the hot path needs, on bare ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tuneloop.registry.nouns import ApiKey
from tuneloop.registry.nouns.access import Scope as KeyScope
from tuneloop.serve.gateway.body import Endpoint, too_large
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.line import LINE, Line

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class ClientLeft(Exception):
    """The client closed the connection before its request was answered."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """A request header; the first one when it stands several times."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """All request headers, the first one of each: for who asks for several, as `header` goes through them each time."""
    return dict(reversed(scope["headers"]))


def said_in(value: bytes) -> str:
    """A header's text."""
    try:
        return value.decode()
    except UnicodeDecodeError:  # older HTTP clients write headers in Latin-1
        return value.decode("latin-1")


def bearer(scope: Scope) -> str:
    """The API key of the request.

    Raises:
        ApiError: 401, there is none.
    """
    scheme, _, secret = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not secret.strip():
        raise unauthorized("no API key was given; send it as `Authorization: Bearer tl-…`")
    return secret.strip().decode("latin-1")


SCOPE_OF: dict[Endpoint, KeyScope] = {
    "chat": "chat",
    "completion": "completions",
    "response": "responses",
    "embedding": "embeddings",
}


def check_scope(key: ApiKey, scope: KeyScope) -> None:
    """Whether a key opens an endpoint.

    Raises:
        ApiError: 403, it does not.
    """
    if key.scopes and scope not in key.scopes:
        opens = ", ".join(key.scopes)
        message = f"this API key lacks the scope {scope!r}; it has: {opens}"
        raise ApiError(403, message, code="scope_not_allowed")


def unauthorized(message: str) -> ApiError:
    """401."""
    return ApiError(401, message, code="invalid_api_key")


async def read_body(scope: Scope, receive: Receive, *, limit: int, timeout_s: float) -> bytes:
    """The whole request body.

    Raises:
        ApiError: 413 when it is longer than `limit` bytes, 408 when it does not arrive in time.
        ClientLeft: it never will.
    """
    line: Line = scope[LINE]
    if (here := line.whole_body()) is not None:
        if len(here) > limit:
            raise too_large(limit)
        return here
    stated = header(scope, b"content-length")
    if stated is not None and stated.isdigit() and int(stated) > limit:
        raise too_large(limit)
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(timeout_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise too_large(limit)
                more = message.get("more_body", False)
    except TimeoutError:
        raise ApiError(
            408, f"the request's body did not arrive within {timeout_s:g} s", code="request_timeout"
        ) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def send_start(send: Send, status: int, content_type: bytes, headers: Headers) -> None:
    """Commit the status and the headers."""
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]}
    )


async def send_part(send: Send, body: bytes, *, more: bool) -> None:
    """A piece of the body, or its end."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def send_json(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """A whole JSON response."""
    length = (b"content-length", str(len(body)).encode())
    await send_start(send, status, b"application/json", [length, *headers])
    await send_part(send, body, more=False)
