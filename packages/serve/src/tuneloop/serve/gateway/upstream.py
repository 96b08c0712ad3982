"""The hop to an engine: send a request, hand back its answer as bytes, and name every way in which an engine can fail.

Idle connections are closed after 4 s, before vLLM closes them at 5 s. Closing a reply that is not read to its end
closes its connection, which is how an engine learns that the client has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, get_args

from tuneloop.serve.gateway.body import PATH_OF, Endpoint
from tuneloop.serve.gateway.client import Answer, Client, ConnectionFailed
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.sse import EngineError, error_of

_MAX_ERROR_BYTES = 64_000
_MAX_BODY_BYTES = 64_000_000
_END_S = 1.0  # an engine ends its response right after its last event
_NOT_EVERYWHERE: frozenset[Endpoint] = frozenset({"response", "embedding"})  # engines have them, or not
Retry = Literal["anywhere", "elsewhere", "never"]
# What it tells of the engine: nothing; it is gone; it does not answer for this version; it has no room for it now.
Sign = Literal["none", "gone", "failing", "busy"]
# How an engine fails an attempt: no connection; a broken one; nothing in time; no room; the version is not loaded; an
# error, or no answer at all; broken off in mid-answer.
Fault = Literal["unreachable", "lost", "timeout", "busy", "not_loaded", "error", "broke_off"]
FAULTS: tuple[Fault, ...] = get_args(Fault)


class EngineFailure(Exception):
    """An attempt that failed: what to answer if it was the last, what to record, and whether another may be made."""

    def __init__(
        self,
        error: ApiError,
        detail: str,
        *,
        retry: Retry,
        sign: Sign = "none",
        fault: Fault | None = None,
        logged: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail  # names the engine and the cause: for records, which are redacted, not for clients
        self.logged = detail if logged is None else logged  # without what an engine said, which may quote the request
        self.retry = retry
        self.sign = sign
        self.fault = fault  # None: the engine is right to refuse


class Reply:
    """An engine's answer whose headers have come."""

    def __init__(self, engine: str, answer: Answer) -> None:
        self._engine = engine
        self._answer = answer

    async def some(self, deadline: float) -> bytes:
        """The next bytes; empty at the end.

        Raises:
            EngineFailure: the connection broke.
            TimeoutError: nothing came by `deadline`, on the loop's clock.
        """
        try:
            return await self._answer.some(deadline)
        except TimeoutError:  # an OSError too
            raise
        except OSError as error:
            raise lost(self._engine, error) from error

    async def pump(self, take: Callable[[bytes], bool], idle_s: float) -> bool:
        """Hand bytes to `take` as they come, until it returns False (then True) or the answer ends (False).

        Raises:
            EngineFailure: the connection broke.
            TimeoutError: nothing came for `idle_s`.
            Exception: what `take` raises.
        """
        try:
            return await self._answer.pump(take, idle_s)
        except TimeoutError:  # an OSError too
            raise
        except OSError as error:
            raise lost(self._engine, error) from error

    async def whole(self, deadline: float) -> bytes:
        """Everything.

        Raises:
            EngineFailure: the connection broke, or the answer is absurdly long.
        """
        if (whole := self._answer.here()) is not None:
            return whole
        parts, size = [], 0
        while part := await self.some(deadline):
            size += len(part)
            if size > _MAX_BODY_BYTES:
                raise lost(self._engine, ValueError(f"an answer of more than {_MAX_BODY_BYTES} bytes"))
            parts.append(part)
        return b"".join(parts)

    async def begun(self, limit: int, deadline: float) -> bytes:
        """As much as there is, up to about `limit` bytes.

        Raises:
            EngineFailure: the connection broke.
        """
        found = b""
        while len(found) < limit and (part := await self.some(deadline)):
            found += part
        return found[:limit]

    async def ended(self) -> None:
        """Read the end of an answer that has said everything, so that its connection can carry another."""
        deadline = asyncio.get_running_loop().time() + _END_S
        with suppress(TimeoutError, EngineFailure):
            while await self.some(deadline):
                pass

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else close it."""
        self._answer.close()


class Upstream:
    """Keeps connections to engines; one for each event loop."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._client = Client(connect_timeout_s)

    async def send(
        self, engine: str, url: str, endpoint: Endpoint, body: bytes, headers: dict[str, str], deadline: float
    ) -> Reply:
        """POST `body` to an endpoint of the engine at `url`; returns once a 200's headers are there.

        Raises:
            EngineFailure: no connection, a broken one, or any other status.
            TimeoutError: nothing came by `deadline`, on the loop's clock.
        """
        try:
            status, answer = await self._client.post(url.rstrip("/") + PATH_OF[endpoint], body, headers, deadline)
        except TimeoutError:  # an OSError too
            raise
        except OSError as error:
            raise lost(engine, error, gone=isinstance(error, ConnectionFailed)) from error
        reply = Reply(engine, answer)
        if status == 200:
            return reply
        try:
            said = error_of(await reply.begun(_MAX_ERROR_BYTES, deadline))
        finally:
            reply.close()
        raise refused(engine, endpoint, status, said)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()


def lost(engine: str, cause: Exception, *, gone: bool = False) -> EngineFailure:
    """The connection to the engine could not be made, or broke."""
    error = ApiError(503, "the engine does not answer; try again", code="engine_unavailable", retry_after_s=1)
    detail = f"engine {engine}: {type(cause).__name__} {cause}"
    if gone:
        return EngineFailure(error, detail, retry="anywhere", sign="gone", fault="unreachable")
    return EngineFailure(error, detail, retry="anywhere", sign="failing", fault="lost")


def refused(engine: str, endpoint: Endpoint, status: int, said: EngineError) -> EngineFailure:
    """The engine answered with an error, as a status or as a stream's first event."""
    logged = f"engine {engine} answered {status}"
    detail = f"{logged}: {said.message}"
    # vLLM gives a code with what it looked for in vain; a proxy that leads nowhere gives none either.
    if endpoint in _NOT_EVERYWHERE and ((status == 404 and said.code is None) or status == 501):
        message = "the engines of this model do not serve this endpoint; ask a model that does, or another endpoint"
        unknown = ApiError(400, message, code="endpoint_not_supported")
        return EngineFailure(unknown, detail, retry="elsewhere", logged=logged)
    if status == 404:  # the version was unloaded between our last look and now
        error = ApiError(503, "the version is not ready; try again", code="engine_unavailable", retry_after_s=1)
        return EngineFailure(error, detail, retry="elsewhere", sign="busy", fault="not_loaded", logged=logged)
    if status in {429, 503}:
        error = ApiError(503, "the engines are busy; try again", code="engine_busy", retry_after_s=1)
        return EngineFailure(error, detail, retry="elsewhere", sign="busy", fault="busy", logged=logged)
    if 400 <= status < 500 and status not in {401, 403, 405, 407}:
        error = ApiError(status, said.message, code="invalid_value", param=said.param)
        # What an engine says about a bad request may quote it: for the client, not for the record.
        return EngineFailure(error, f"engine {engine} refused the request with {status}", retry="never")
    error = ApiError(502, "the engine failed; try again", code="engine_error")
    return EngineFailure(error, detail, retry="anywhere", sign="failing", fault="error", logged=logged)


def too_late(engine: str, timeout_s: float, *, stream: bool) -> EngineFailure:
    """Nothing came in time.

    A stream's first event says that the engine is at work, so one without it hangs. A whole answer comes at its end:
    one that takes long says nothing of its engine, and elsewhere it would take as long, and be paid for twice.
    """
    error = ApiError(504, f"the engine gave no answer within {timeout_s:g} s", code="engine_timeout")
    detail = f"engine {engine} gave no answer within {timeout_s:g} s"
    if stream:
        return EngineFailure(error, detail, retry="elsewhere", sign="gone", fault="timeout")
    message = f"{error.message}; ask for a stream, or for a shorter answer by max_tokens"
    return EngineFailure(ApiError(504, message, code="engine_timeout"), detail, retry="never", fault="timeout")
