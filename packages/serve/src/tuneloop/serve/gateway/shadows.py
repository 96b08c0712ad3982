"""Copies of requests for a route's shadow, off every client's path: recorded apart, and given to nobody.

Copies come after requests. A copy waits in a short queue and is dropped, and counted, when that is full, when requests
wait for their turn, when its engine has much to do of this gateway's requests, or when records pile up; it is tried
once, takes nothing of a key's limits or of the retries, steers no request and sets no engine aside, and is cancelled at
its deadline. What it does take is engine time: at most `shadow_in_flight` copies of each gateway at once, which share
their engine's batches with what runs there. A route without a shadow costs a request one look at an attribute.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tuneloop.registry.routes.assignment import shadowed
from tuneloop.serve.gateway.answers import ANSWERS
from tuneloop.serve.gateway.attempts import EVENT_BYTES_PER_CHAR
from tuneloop.serve.gateway.body import Ask
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.load import Load
from tuneloop.serve.gateway.routing import Plan, pick
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.snapshot import Snapshot, Target
from tuneloop.serve.gateway.upstream import EngineFailure, Reply, Upstream, lost

log = logging.getLogger(__name__)
Dropped = Literal["queue", "busy", "no_engine", "engine", "deadline", "records", "stopped", "defect"]
_NOT_THE_VERSIONS: dict[str, Dropped] = {"engine_busy": "busy", "engine_unavailable": "engine"}


@dataclass(frozen=True, slots=True)
class _Copy:
    exchange: Exchange
    ask: Ask
    until: float  # on the loop's clock


class _Dropped(Exception):
    """A copy that says nothing about its version."""

    def __init__(self, why: Dropped) -> None:
        super().__init__(why)
        self.why = why


class Shadows:
    """Sends copies; one for each event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        snapshot: Callable[[], Snapshot | None],
        load: Load,
        waiting: Callable[[], int],
        finished: Callable[[Exchange], None],
        dropped: Callable[[str, Dropped], None],
    ) -> None:
        """`waiting` says how many requests wait for their turn; `finished` hears of a copy that tells something of its
        version, `dropped` of the model and why one does not."""
        self._settings = settings
        self._snapshot = snapshot
        self._load = load
        self._waiting = waiting
        self._finished = finished
        self._dropped = dropped
        self._upstream: Upstream | None = None
        keeps = settings.record_text == "redacted"
        self._keep_bytes = EVENT_BYTES_PER_CHAR * settings.record_text_chars if keeps else 0
        self._queue: deque[_Copy] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._mine: dict[str, int] = {}  # engine → copies in flight there
        self._stopping = False

    async def start(self) -> None:
        """Make a pool of connections of its own; needs the running loop."""
        self._upstream = Upstream(self._settings.connect_timeout_s)

    async def stop(self) -> None:
        """Cancel what runs and drop what waits."""
        self._stopping = True
        while self._queue:
            self._drop(self._queue.popleft().exchange, "stopped")
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._upstream is not None:
            await self._upstream.close()

    def copy(self, original: Exchange, ask: Ask) -> None:
        """Take a copy of a request that is about to be sent, if its key is the shadow's; waits for nothing.

        What the split had no say in is not copied: a pinned version, a key's own, a key that is held out.
        """
        assert original.plan is not None
        route = original.plan.route
        if route.shadow is None or original.plan.assigned is None or not shadowed(route, original.key_hash):
            return
        exchange = Exchange(
            original.endpoint,
            api_key=original.api_key,
            unit=original.unit,
            unit_source=original.unit_source,
            asked=original.asked,
            stream=original.stream,
            plan=Plan(route, None, (route.shadow.version,)),
            messages=original.messages,
            shadow_of=original.id,
        )
        if original.mask is not None:  # to judge its answer would keep guards from real ones; unjudged it is not kept
            exchange.guards["output.guards"] = "skipped: the answer of a shadow is not kept"
        if self._stopping or len(self._queue) >= self._settings.shadow_queue:
            self._drop(exchange, "stopped" if self._stopping else "queue")
            return
        until = asyncio.get_running_loop().time() + self._settings.shadow_timeout_s
        self._queue.append(_Copy(exchange, ask, until))
        self._next()

    def _next(self) -> None:
        while self._queue and len(self._running) < self._settings.shadow_in_flight:
            copy = self._queue.popleft()
            task = asyncio.get_running_loop().create_task(self._run(copy))
            self._running.add(task)
            task.add_done_callback(partial(self._ended, copy.exchange))

    def _ended(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():
            self._drop(exchange, "stopped")
        if not self._stopping:
            self._next()

    async def _run(self, copy: _Copy) -> None:
        exchange = copy.exchange
        try:
            await self._send(copy)
            exchange.total_ms = exchange.elapsed_ms()
            self._finished(exchange)
        except _Dropped as dropped:
            self._drop(exchange, dropped.why)
        except Exception:
            log.exception("a copy of request %s", exchange.shadow_of, extra={"request_id": exchange.shadow_of})
            self._drop(exchange, "defect")

    async def _send(self, copy: _Copy) -> None:
        exchange = copy.exchange
        if asyncio.get_running_loop().time() >= copy.until:
            raise _Dropped("deadline")
        exchange.target = target = self._target(exchange)
        self._load.carry_copy(target)
        self._mine[target.engine] = self._mine.get(target.engine, 0) + 1
        try:
            async with asyncio.timeout_at(copy.until):
                await self._ask(exchange, copy.ask, target, copy.until)
        except TimeoutError:
            exchange.failed(504, f"cancelled at its deadline of {self._settings.shadow_timeout_s:g} s")
        except EngineFailure as failure:
            why = _NOT_THE_VERSIONS.get(failure.error.code or "")
            if why is not None and exchange.ttft_ms is None:
                raise _Dropped(why) from None
            exchange.failed(failure.error.status, failure.detail)
        except ValueError as error:
            exchange.failed(502, f"engine {target.engine}: an answer that is no answer: {error}")
        finally:
            self._mine[target.engine] -= 1
            self._load.put_down_copy(target)

    def _target(self, exchange: Exchange) -> Target:
        assert exchange.plan is not None
        snapshot = self._snapshot()
        if snapshot is None:
            raise _Dropped("no_engine")
        aside, shunned = self._load.aside(), self._load.shunned()
        versions = exchange.plan.versions
        target = pick(snapshot, exchange.plan.route.model, versions, self._with_mine, avoid=aside, shun=shunned)
        if target is None or target.engine in aside or target.slot in shunned:
            raise _Dropped("no_engine")
        if self._waiting() or self._load.of(target.engine) > self._settings.shadow_engine_load:
            raise _Dropped("busy")
        return target

    def _with_mine(self, engine: str) -> int:
        return self._load.of(engine) + self._mine.get(engine, 0)

    async def _ask(self, exchange: Exchange, ask: Ask, target: Target, deadline: float) -> None:
        body = ask.for_engine(target.name, exchange.id)
        exchange.queue_ms = exchange.elapsed_ms()
        headers = {"x-request-id": exchange.id}
        assert self._upstream is not None, "start() comes first"
        reply = await self._upstream.send(target.engine, target.url, ask.endpoint, body, headers, deadline)
        try:
            if ask.stream:
                await self._streamed(exchange, target, reply, deadline)
            else:
                whole = await reply.whole(deadline)
                exchange.ttft_ms = exchange.elapsed_ms()
                said = ANSWERS[exchange.endpoint]
                exchange.usage = said.usage_of(whole)
                exchange.answer = [whole] if said.is_text and self._room(exchange) else []
        finally:
            reply.close()

    async def _streamed(self, exchange: Exchange, target: Target, reply: Reply, deadline: float) -> None:
        relay = ANSWERS[exchange.endpoint].relay(
            engine_name=target.name, asked=target.name, wants_usage=False, keep_bytes=self._room(exchange)
        )
        exchange.answer = relay.kept
        while not relay.done and relay.error is None:
            chunk = await reply.some(deadline)
            if not chunk:
                raise lost(target.engine, EOFError("the stream ended early"))
            if relay.push(chunk) and exchange.ttft_ms is None:
                exchange.ttft_ms = exchange.elapsed_ms()
        exchange.usage, exchange.events = relay.usage, relay.events
        if relay.error is not None:
            exchange.failed(relay.error.status, relay.error.message)
            return
        await reply.ended()

    def _room(self, exchange: Exchange) -> int:
        return 0 if "output.guards" in exchange.guards else self._keep_bytes

    def _drop(self, exchange: Exchange, why: Dropped) -> None:
        assert exchange.plan is not None
        self._dropped(exchange.plan.route.model, why)
