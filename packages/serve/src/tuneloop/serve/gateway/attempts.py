"""One attempt at one engine: send the request, wait for the first bytes, then pass on what comes.

Until `Attempts.run` commits, nothing has reached the client and the caller may try elsewhere (`EngineFailure`);
afterwards a failure can only be told as an event in the stream (`ApiError`).
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from tuneloop.serve.gateway.answers import ANSWERS
from tuneloop.serve.gateway.body import Ask
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.http import Send, send_part
from tuneloop.serve.gateway.line import Line
from tuneloop.serve.gateway.load import Load
from tuneloop.serve.gateway.mask import Mask
from tuneloop.serve.gateway.metrics import Metrics
from tuneloop.serve.gateway.responses.mask import ResponseMask
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.snapshot import Target
from tuneloop.serve.gateway.sse import EngineError, Relay
from tuneloop.serve.gateway.tally import Times
from tuneloop.serve.gateway.upstream import EngineFailure, Reply, Upstream, lost, refused, too_late

EVENT_BYTES_PER_CHAR = 64  # an event is some 250 bytes and says a word
_JSON = (b"content-type", b"application/json")
_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Opened(msgspec.Struct, frozen=True):
    """An engine's answer that has begun well: the client's first bytes are here."""

    reply: Reply
    relay: Relay | None  # None: `first` is the whole answer
    first: bytes
    mask: Mask | ResponseMask | None = None  # of a stream, where the model's guards look at answers

    async def shown(self, data: bytes) -> bytes:
        """Whole events as the client may see them."""
        return data if self.mask is None else await self.mask.push(data)


class Attempts:
    """Makes attempts; needs a running event loop from the start."""

    def __init__(self, settings: GatewaySettings, load: Load, metrics: Metrics) -> None:
        self._load = load
        self._metrics = metrics
        self.loop = asyncio.get_running_loop()
        self._upstream = Upstream(settings.connect_timeout_s)
        self._first_byte_timeout_s = settings.first_byte_timeout_s
        self._idle_timeout_s = settings.idle_timeout_s
        keeps = settings.record_text == "redacted"
        self._keep_bytes = EVENT_BYTES_PER_CHAR * settings.record_text_chars if keeps else 0

    async def close(self) -> None:
        """Close the connections to the engines."""
        await self._upstream.close()

    async def run(self, line: Line, send: Send, exchange: Exchange, ask: Ask, target: Target) -> None:
        """Ask one engine and deliver its answer.

        Raises:
            EngineFailure: it failed before anything was committed to the client.
            ApiError: it failed afterwards.
        """
        exchange.target = target
        self._load.carry(target, exchange.tokens)
        try:
            try:
                opened = await self._open(exchange, ask, target)
            except EngineFailure as failure:
                self._tell(target, failure)
                raise
            self._load.begun(target)
            exchange.error = None
            try:
                await self._deliver(line, send, exchange, opened)
            except ApiError as error:  # an engine that begins each time and never ends would else draw every stream
                self._load.shun(target.slot, busy=False)
                self._metrics.engine_failed(target, "timeout" if error.status == 504 else "broke_off")
                raise
            finally:
                opened.reply.close()
            told = opened.relay.error if opened.relay is not None else None
            if told is None:
                self._load.answered(target)
            elif told.status >= 500:
                self._load.shun(target.slot, busy=False)
                self._metrics.engine_failed(target, "error")
        finally:
            self._load.put_down(target, exchange.tokens)

    def _tell(self, target: Target, failure: EngineFailure) -> None:
        """Note what a failure says of the engine: whether another answers then is no matter."""
        if failure.fault is not None:
            self._metrics.engine_failed(target, failure.fault)
        if failure.sign == "gone":
            self._load.set_aside(target.engine)
        elif failure.sign != "none":
            self._load.shun(target.slot, busy=failure.sign == "busy")

    async def _open(self, exchange: Exchange, ask: Ask, target: Target) -> Opened:
        """Send the request to an engine and wait until there is something for the client."""
        headers = {"x-request-id": exchange.id} | ({"traceparent": exchange.trace} if exchange.trace else {})
        body = ask.for_engine(target.name, exchange.id)
        exchange.queue_ms = exchange.elapsed_ms()
        deadline = self.loop.time() + self._first_byte_timeout_s
        reply: Reply | None = None
        try:
            reply = await self._upstream.send(target.engine, target.url, ask.endpoint, body, headers, deadline)
            opened = await self._begun(exchange, ask, target, reply, deadline)
        except BaseException as error:
            if reply is not None:
                reply.close()
            if isinstance(error, TimeoutError):
                exchange.overdue = not ask.stream
                raise too_late(target.engine, self._first_byte_timeout_s, stream=ask.stream) from None
            if isinstance(error, ValueError) and reply is not None:
                said = EngineError(f"an answer that is no answer: {error}")
                raise refused(target.engine, ask.endpoint, 200, said) from error
            raise
        exchange.ttft_ms = exchange.elapsed_ms()
        return opened

    async def _begun(self, exchange: Exchange, ask: Ask, target: Target, reply: Reply, deadline: float) -> Opened:
        said = ANSWERS[ask.endpoint]
        if not ask.stream:
            whole = await reply.whole(deadline)
            exchange.usage = said.usage_of(whole)
            if exchange.mask is not None:
                whole = await exchange.mask(self._keep_bytes).whole(whole)
            if said.is_text:
                exchange.answer = [whole]
            return Opened(reply, None, said.renamed(whole, target.name, ask.asked))
        relay = said.relay(
            engine_name=target.name, asked=ask.asked, wants_usage=ask.wants_usage, keep_bytes=self._keep_bytes
        )
        mask = exchange.mask(self._keep_bytes) if exchange.mask is not None else None
        first = b""
        while not first:
            chunk = await reply.some(deadline)
            if not chunk:
                raise lost(target.engine, EOFError("the stream ended before its first event"))
            first = relay.push(chunk)
        if relay.error is not None:
            raise refused(target.engine, ask.endpoint, relay.error.status, relay.error)
        opened = Opened(reply, relay, first, mask)
        return opened if mask is None else msgspec.structs.replace(opened, first=await opened.shown(first))

    async def _deliver(self, line: Line, send: Send, exchange: Exchange, opened: Opened) -> None:
        """Commit to the client, then pass on what comes."""
        assert exchange.target is not None
        exchange.committed = True
        if opened.relay is None:
            await line.answer([_JSON, *exchange.headers()], opened.first)
            return
        relay = opened.relay
        exchange.answer = (opened.mask or relay).kept
        await line.begin([*_SSE, *exchange.headers()], opened.first)
        try:
            await self._pass_on(line, relay, opened, self._metrics.between(exchange.target))
        except TimeoutError:
            raise ApiError(504, "the engine fell silent in mid-answer", code="engine_timeout") from None
        except (EngineFailure, ValueError) as failure:
            exchange.error = str(failure)
            raise _broke_off() from failure
        finally:
            exchange.usage, exchange.events = relay.usage, relay.events
            exchange.numbered = opened.mask.numbered if isinstance(opened.mask, ResponseMask) else relay.events
        if relay.error is not None:  # the engine has told the client itself, by an event
            exchange.failed(relay.error.status, relay.error.message)
        elif not relay.done:
            exchange.error = f"engine {exchange.target.engine} ended the stream early"
            raise _broke_off()
        exchange.delivered = relay.done
        await send_part(send, b"", more=False)
        await opened.reply.ended()

    async def _pass_on(self, line: Line, relay: Relay, opened: Opened, between: Times) -> None:
        """Send on what the engine says, until it has said all or breaks off."""
        last = time.perf_counter()
        held: list[bytes] = []  # until it is masked

        def take(chunk: bytes) -> bool:
            nonlocal last
            data = relay.push(chunk)
            if data and not relay.done:
                now = time.perf_counter()
                between.add(now - last)
                last = now
            if data and opened.mask is not None:
                held.append(data)
                return False
            if data:
                line.more(data)
            return not relay.done and not line.stalled

        while not relay.done:
            if line.stalled:
                await line.drained()
                last = time.perf_counter()  # the client's slowness is none of the engine's
            if not await opened.reply.pump(take, self._idle_timeout_s):
                break
            if held:
                line.more(await opened.shown(b"".join(held)))
                held.clear()
                last = time.perf_counter()  # nor are the guards'


def _broke_off() -> ApiError:
    return ApiError(502, "the engine broke off in mid-answer; what came so far may be incomplete", code="engine_error")
