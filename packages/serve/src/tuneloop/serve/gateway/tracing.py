"""Traces by OpenTelemetry, for who sets `otlp_endpoint`: each request is a span under the client's, what its engine did
is one under that, and the engine is told of it in a W3C traceparent, so that its own spans hang below.

Names are those of the GenAI conventions. A span says who, when, how many and how long, never what was said. The request
path draws three numbers; spans are made and sent by a thread, and what cannot be sent is counted and let go.
"""

from __future__ import annotations

import logging
import random
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from tuneloop.serve.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span

    from tuneloop.serve.gateway.exchange import Exchange

log = logging.getLogger(__name__)
PAUSE_S = 0.5
BATCH = 512  # requests
MOST_WAITING = 10_000
EXPORT_TIMEOUT_S = 5.0
_OPERATIONS = {"chat": "chat", "completion": "text_completion", "response": "chat", "embedding": "embeddings"}
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Traced:
    """A request that is traced: its trace, the client's span if there is one, its own, and the one of its engine."""

    trace: int
    parent: int | None
    span: int
    engine_span: int


@dataclass(frozen=True, slots=True)
class _Ended:
    traced: Traced
    at: datetime
    queue_ms: float | None
    ttft_ms: float | None
    total_ms: float
    status: int
    attributes: dict[str, str | int | float | bool]
    engine: str


def passed_on(sent: bytes | None) -> str:
    """A client's traceparent as an engine may get it; what is none begins no trace, as the standard has it."""
    return sent.decode("ascii") if sent is not None and _TRACEPARENT.fullmatch(sent) else ""


class Tracing:
    """Makes and sends the spans of one gateway; without an endpoint it only passes traceparents on."""

    def __init__(self, settings: GatewaySettings, dropped: Callable[[int], None], rng: random.Random) -> None:
        self._settings = settings
        self._dropped = dropped
        self._rng = rng
        self._ended: deque[_Ended] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gateway-traces", daemon=True)

    def start(self) -> None:
        """Start the thread, if there is anything for it to do."""
        if self._settings.otlp_endpoint:
            self._thread.start()

    def stop(self) -> None:
        """Send what waits, and give up on it after one try."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * EXPORT_TIMEOUT_S)

    def begin(self, exchange: Exchange, sent: bytes | None) -> None:
        """Give a request its place in its client's trace, or a trace of its own; on the event loop."""
        exchange.trace = passed_on(sent)
        if not self._settings.otlp_endpoint:
            return
        known = _TRACEPARENT.fullmatch(sent) if exchange.trace and sent is not None else None
        if known is not None:
            trace, parent, sampled = int(known[1], 16), int(known[2], 16), int(known[3], 16) & 1
        else:
            trace, parent, sampled = self._rng.getrandbits(128), None, self._rng.random() < self._settings.trace_share
        if not sampled or not trace or parent == 0:
            return
        spans = self._rng.getrandbits(64) or 1, self._rng.getrandbits(64) or 1
        exchange.traced = Traced(trace, parent, *spans)
        exchange.trace = f"00-{trace:032x}-{spans[1]:016x}-01"

    def finished(self, exchange: Exchange) -> None:
        """Take an exchange that has ended; on the event loop, waits for nothing."""
        if exchange.traced is None:
            return
        if len(self._ended) >= MOST_WAITING:
            self._dropped(1)
            return
        self._ended.append(
            _Ended(
                exchange.traced,
                exchange.at,
                exchange.queue_ms,
                exchange.ttft_ms,
                exchange.total_ms,
                exchange.status,
                _attributes(exchange),
                exchange.target.engine if exchange.target is not None else "",
            )
        )

    def _run(self) -> None:
        spans = _Spans(self._settings)
        while True:
            batch = [self._ended.popleft() for _ in range(min(BATCH, len(self._ended)))]
            if batch and not spans.send(batch):
                self._dropped(len(batch))
            if not self._ended:
                if self._stopping:
                    spans.close()
                    return
                self._wake.wait(PAUSE_S)


class _Spans:
    """Makes spans of what has ended, and sends them; of the thread."""

    def __init__(self, settings: GatewaySettings) -> None:
        # These take a tenth of a second and 10 MB that only who traces should pay.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import IdGenerator  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415

        made: list[ReadableSpan] = []

        class Given(IdGenerator):
            trace = span = 0

            def generate_trace_id(self) -> int:
                return self.trace

            def generate_span_id(self) -> int:
                return self.span

        class Kept(SpanProcessor):
            def on_end(self, span: ReadableSpan) -> None:
                made.append(span)

        self._made = made
        self._given = Given()
        about = {"service.name": "tuneloop-gateway", "service.instance.id": settings.effective_id}
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create(about),
            id_generator=self._given,
            shutdown_on_exit=False,
        )
        provider.add_span_processor(Kept())
        self._tracer = provider.get_tracer("tuneloop.serve.gateway")
        endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)

    def send(self, batch: list[_Ended]) -> bool:
        """Whether they arrived."""
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

        self._made.clear()
        try:
            for ended in batch:
                self._make(ended)
            return bool(self._exporter.export(self._made) is SpanExportResult.SUCCESS)
        except Exception:
            log.exception("spans could not be made or sent")
            return False

    def close(self) -> None:
        """Let go of connections."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _make(self, ended: _Ended) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415

        traced, named = ended.traced, ended.attributes
        began = int(ended.at.timestamp() * 1e9)
        at = partial(_after, began)
        name = f"{named['gen_ai.operation.name']} {named.get('gen_ai.request.model', '')}".rstrip()
        failed = ended.status >= 500
        own = self._span(name, SpanKind.SERVER, traced.parent, traced.span, traced.trace, began)
        own.set_attributes(named)
        if ended.engine and ended.queue_ms is not None:
            hop = self._span(name, SpanKind.CLIENT, traced.span, traced.engine_span, traced.trace, at(ended.queue_ms))
            hop.set_attributes({key: value for key, value in named.items() if key.startswith("gen_ai.")})
            hop.set_attribute("server.address", ended.engine)
            if ended.ttft_ms is not None:
                hop.add_event("first token", timestamp=at(ended.ttft_ms))
            hop.end(at(ended.total_ms))
        if failed:
            own.set_status(Status(StatusCode.ERROR))
        own.end(at(ended.total_ms))

    def _span(self, name: str, kind: Any, parent: int | None, span: int, trace: int, began: int) -> Span:
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context  # noqa: PLC0415

        self._given.trace, self._given.span = trace, span
        context = Context()
        if parent is not None:
            above = SpanContext(trace, parent, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
            context = set_span_in_context(NonRecordingSpan(above), context)
        return self._tracer.start_span(name, context=context, kind=kind, start_time=began)


def _after(began: int, ms: float) -> int:
    return began + int(ms * 1e6)


def _attributes(exchange: Exchange) -> dict[str, str | int | float | bool]:
    """Who, how many and how long, under the names of the conventions where they have one."""
    found: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": _OPERATIONS[exchange.endpoint],
        "gen_ai.provider.name": "tuneloop",
        "gen_ai.response.id": exchange.id,
        "gen_ai.request.stream": exchange.stream,
        "http.response.status_code": exchange.status,
        "tuneloop.unit_source": exchange.unit_source,
    }
    if exchange.plan is not None:  # otherwise the name is whatever a client wrote
        found["gen_ai.request.model"] = exchange.plan.route.model
        found["tuneloop.revision"] = exchange.plan.route.revision
    if exchange.target is not None:
        found["gen_ai.response.model"] = exchange.target.name
    if exchange.usage is not None:
        found["gen_ai.usage.input_tokens"] = exchange.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = exchange.usage.completion_tokens
    if exchange.api_key is not None:
        found["tuneloop.api_key"] = exchange.api_key
    if exchange.queue_ms is not None:
        found["tuneloop.queue_ms"] = round(exchange.queue_ms, 3)
    if exchange.ttft_ms is not None:
        found["gen_ai.response.time_to_first_chunk"] = round(exchange.ttft_ms / 1e3, 6)
    if exchange.guards:
        verdicts = (f"{guard} {verdict.partition(':')[0]}" for guard, verdict in exchange.guards.items())
        found["tuneloop.guards"] = ", ".join(verdicts)
    if exchange.status >= 400:
        found["error.type"] = str(exchange.status)
    return found
