"""Traces: what a collector that speaks OTLP gets, under the trace of who asked, and never a word of what was said."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serve.gateway.world import World, until
from tuneloop.serve.gateway.exchange import Exchange
from tuneloop.serve.gateway.settings import GatewaySettings
from tuneloop.serve.gateway.tracing import Tracing

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{CLIENT}-01", f"00-{TRACE}-{CLIENT}-00"


class Collector(ThreadingHTTPServer):
    """Takes spans as a collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.raw = b""
        super().__init__(("127.0.0.1", 0), Taking)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        asked = ExportTraceServiceRequest.FromString(body)
        self.server.raw += body
        for of_resource in asked.resource_spans:
            self.server.resources.append({a.key: a.value.string_value for a in of_resource.resource.attributes})
            for scope in of_resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_request_is_two_spans_in_its_clients_trace_and_the_engine_hangs_below(
    world: World, collector: Collector
) -> None:
    engine = world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway(otlp_endpoint=collector.url)
    asked = {"model": "bot", "messages": [{"role": "user", "content": "whispered words"}], "stream": True}
    got = gateway.call("/v1/chat/completions", asked, traceparent=SAMPLED)
    assert got.status == 200
    passed = world.engines["e1"][0].seen[-1].headers["traceparent"]
    assert gateway.call("/v1/chat/completions", asked, traceparent=NOT_SAMPLED).status == 200
    assert world.engines["e1"][0].seen[-1].headers["traceparent"] == NOT_SAMPLED, "the client does not sample it"
    gateway.call("/v1/chat/completions", asked | {"model": "whispered-model"}, traceparent=SAMPLED)
    until(lambda: len(collector.spans) == 3, 30)
    server, client = sorted(collector.spans[:2], key=lambda span: span.kind)
    if server.kind != Span.SPAN_KIND_SERVER:
        server, client = client, server
    assert (server.kind, client.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
    assert server.name == client.name == "chat bot"
    assert {server.trace_id.hex(), client.trace_id.hex()} == {TRACE}
    assert (server.parent_span_id.hex(), client.parent_span_id) == (CLIENT, server.span_id)
    assert passed == f"00-{TRACE}-{client.span_id.hex()}-01"
    told = attributes(server)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "bot"
    assert told["gen_ai.response.model"] == "bot@1"
    assert told["gen_ai.response.id"] == got.headers["x-request-id"]
    assert told["http.response.status_code"] == 200
    assert told["gen_ai.usage.output_tokens"] > 0
    assert told["tuneloop.revision"] == 1
    assert attributes(client)["server.address"] == "e1"
    assert [event.name for event in client.events] == ["first token"]
    began, first, ended = client.start_time_unix_nano, client.events[0].time_unix_nano, client.end_time_unix_nano
    assert server.start_time_unix_nano <= began <= first <= ended <= server.end_time_unix_nano
    refused = attributes(collector.spans[2])
    assert (refused["error.type"], refused["http.response.status_code"]) == ("404", 404)
    assert collector.spans[2].status.code == Status.STATUS_CODE_UNSET, "the client's mistake is no error of ours"
    assert collector.resources[0]["service.name"] == "tuneloop-gateway"
    assert b"whispered" not in collector.raw
    assert engine is not None


def test_a_collector_that_is_away_costs_no_request_and_what_it_misses_is_counted(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway(otlp_endpoint="http://127.0.0.1:9")
    assert [gateway.chat().status for _ in range(3)] == [200] * 3
    until(lambda: gateway.metric("tuneloop_spans_dropped_total") == 3, 30)


def test_a_share_of_untraced_requests_begins_a_trace_and_none_without_a_collector() -> None:
    def traced(share: float, endpoint: str = "http://127.0.0.1:9") -> int:
        settings = GatewaySettings(otlp_endpoint=endpoint, trace_share=share)
        tracing = Tracing(settings, lambda _: None, random.Random(1))
        exchanges = [Exchange("chat") for _ in range(200)]
        for exchange in exchanges:
            tracing.begin(exchange, None)
            assert (exchange.trace == "") == (exchange.traced is None)
        return sum(exchange.traced is not None for exchange in exchanges)

    assert (traced(0.0), traced(1.0), traced(1.0, endpoint="")) == (0, 200, 0)
    assert 30 < traced(0.25) < 70
