"""What a product team gets: an unchanged OpenAI client, and answers from the version that the split says."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket

import pytest

from serve.gateway.faulty_engine import answer, text_of
from serve.gateway.world import World, until
from tuneloop.registry.nouns import RequestRecord
from tuneloop.registry.routes.assignment import assign, key_hash
from tuneloop.serve.gateway.exchange import new_request_id
from tuneloop.serve.gateway.line import Line
from tuneloop.serve.gateway.protocol import GatewayProtocol

HELLO = [{"role": "user", "content": "Hello?"}]


def recorded(world: World, request_id: str) -> RequestRecord:
    """The record, once it is in the database."""
    return until(
        lambda: next((r for r in world.registry.traffic.window("bot") if r.id == request_id), None), what=request_id
    )


def test_request_ids_lie_in_an_index_in_the_order_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for second in (1_764_460_800.9, 1_764_460_801.1):
        monkeypatch.setattr("tuneloop.serve.gateway.exchange.time.time", lambda at=second: at)
        found.append({new_request_id() for _ in range(1_000)})
    assert [len(ids) for ids in found] == [1_000, 1_000]
    assert max(found[0]) < min(found[1])
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", one) for ids in found for one in ids)


def test_the_official_client_gets_whole_answers(world: World) -> None:
    engine = world.engine("e1", "bot@1")
    world.route((1, 10_000))
    with world.gateway().client() as client:
        chat = client.chat.completions.create(
            model="bot", messages=HELLO, temperature=0, max_tokens=9, extra_body={"cache_salt": "mine"}
        )
        plain = client.completions.create(model="bot", prompt="Hello?", max_tokens=9)
    said = "".join(text_of(engine.seen[0], 5))
    assert (chat.model, chat.choices[0].message.content) == ("bot", said)
    assert (plain.model, plain.choices[0].text) == ("bot", said)
    assert chat.usage is not None
    assert chat.usage.total_tokens == 12
    assert chat.id == f"chatcmpl-{chat._request_id}"
    sent = {"model": "bot@1", "messages": HELLO, "temperature": 0, "max_tokens": 9, "cache_salt": "mine"}
    assert engine.seen[0].body == sent
    assert engine.seen[0].headers["x-request-id"] == chat._request_id
    assert [seen.path for seen in engine.seen] == ["/v1/chat/completions", "/v1/completions"]


def test_the_time_between_events_is_counted_by_engine_and_tokens_by_owner(world: World) -> None:
    world.engine("e1", "bot@1", pause_s=0.02)
    world.route((1, 10_000))
    gateway = world.gateway()
    assert gateway.chat(stream=True).status == 200
    labels = 'engine="e1",model="bot",version="1"'
    until(lambda: gateway.metric(f"tuneloop_engine_queue_seconds_count{{{labels}}}") == 1)  # it has ended
    assert gateway.metric(f"tuneloop_inter_token_seconds_count{{{labels}}}") >= 1
    assert gateway.metric(f"tuneloop_inter_token_seconds_sum{{{labels}}}") >= 0.02
    assert gateway.metric('tuneloop_owner_tokens_total{kind="prompt",owner="test"}') == 7
    assert gateway.metric('tuneloop_owner_time_to_first_token_seconds_count{owner="test"}') == 1


@pytest.mark.parametrize("asks_for_usage", [False, True])
def test_the_official_client_gets_streams_and_usage_only_when_it_asks(world: World, asks_for_usage: bool) -> None:
    engine = world.engine("e1", "bot@1")
    world.route((1, 10_000))
    options = {"stream_options": {"include_usage": True}} if asks_for_usage else {}
    with world.gateway().client() as client:
        with client.chat.completions.create(model="bot", messages=HELLO, stream=True, **options) as stream:
            chat = list(stream)
        with client.completions.create(model="bot", prompt="Hello?", stream=True, **options) as stream:
            plain = list(stream)
    said = "".join(text_of(engine.seen[0], 5))
    assert "".join(c.choices[0].delta.content or "" for c in chat if c.choices) == said
    assert "".join(c.choices[0].text for c in plain if c.choices) == said
    assert {c.model for c in (*chat, *plain)} == {"bot"}
    for chunks in (chat, plain):
        usages = [chunk.usage.total_tokens for chunk in chunks if chunk.usage]
        assert usages == ([12] if asks_for_usage else [])
    record = recorded(world, chat[0].id.removeprefix("chatcmpl-"))
    assert (record.prompt_tokens, record.completion_tokens, record.stream) == (7, 5, True)


def test_every_unit_gets_the_version_that_assign_says_and_keeps_it(world: World) -> None:
    world.engine("e1", "bot@1", "bot@2")
    world.engine("e2", "bot@1", "bot@2")
    route = world.route((2, 3_000), (1, 7_000))
    gateway = world.gateway()
    for unit in [f"user-{n}" for n in range(30)] * 2:
        got = gateway.chat(unit=unit)
        assert got.headers["x-tuneloop-version"] == f"bot@{assign(route, unit)}"
        assert got.headers["x-tuneloop-revision"] == "1"
        assert got.json["model"] == "bot"
    records = until(lambda: len(found := world.registry.traffic.window("bot")) == 60 and found)
    assert {r.served_version for r in records} == {1, 2}
    assert all(r.served_version == r.assigned_version for r in records)


def test_the_sticky_key_is_header_then_user_then_api_key(world: World) -> None:
    world.engine("e1", "bot@1", "bot@2")
    world.route((2, 5_000), (1, 5_000))
    gateway = world.gateway()
    key_id = world.registry.keys.all()[0].id
    for got, source, unit in [
        (gateway.chat(unit="zoë", user="u"), "header", "zoë"),
        (gateway.chat(user="u"), "user", "u"),
        (gateway.chat(user=""), "api_key", key_id),
        (gateway.chat(), "api_key", key_id),
    ]:
        record = recorded(world, got.headers["x-request-id"])
        assert (record.key_source, record.key_hash, record.api_key) == (source, key_hash(unit), key_id)


def test_a_version_no_engine_serves_is_answered_by_the_champion_and_recorded_so(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((2, 10_000), (1, 0))
    got = world.gateway().chat()
    assert (got.status, got.headers["x-tuneloop-version"]) == (200, "bot@1")
    record = recorded(world, got.headers["x-request-id"])
    assert (record.assigned_version, record.served_version, record.engine) == (2, 1, "e1")


def test_without_an_engine_the_answer_is_503_with_retry_after(world: World) -> None:
    world.route((1, 10_000))
    got = world.gateway().chat()
    assert (got.status, got.error["code"]) == (503, "no_engine_ready")
    assert got.error["message"] == "no engine is live; start one with `tuneloop engine` or `tuneloop up`"
    assert int(got.headers["retry-after"]) > 0
    record = recorded(world, got.headers["x-request-id"])
    assert (record.status, record.served_version, record.engine) == (503, None, None)


def test_a_pinned_version_answers_and_belongs_to_no_arm(world: World) -> None:
    world.engine("e1", "bot@1", "bot@2")
    world.route((2, 0), (1, 10_000))
    world.key, _ = world.registry.keys.new("tester", by="test", may_pin=True)
    got = world.gateway().chat(model="bot@2")
    assert (got.headers["x-tuneloop-version"], got.json["model"]) == ("bot@2", "bot@2")
    record = recorded(world, got.headers["x-request-id"])
    assert (record.assigned_version, record.served_version) == (None, 2)


def test_a_record_holds_times_and_tokens_and_no_text_when_told_so(world: World) -> None:
    world.engine("e1", "bot@1", pause_s=0.02)
    world.route((1, 10_000))
    got = world.gateway().chat(stream=True)
    record = recorded(world, got.headers["x-request-id"])
    assert record.queue_ms is not None
    assert record.ttft_ms is not None
    assert 0 < record.queue_ms < record.ttft_ms < record.total_ms < 5_000
    assert record.total_ms - record.ttft_ms > 80
    assert (record.status, record.error, record.engine, record.endpoint) == (200, None, "e1", "chat")
    assert (record.messages, record.answer) == ((), None)


def test_the_model_list_shows_what_the_key_may_use(world: World) -> None:
    world.route((1, 10_000))
    world.route((1, 10_000), model="other")
    gateway = world.gateway()
    with gateway.client() as client:
        assert sorted(model.id for model in client.models.list()) == ["bot", "other"]
        assert client.models.retrieve("bot").id == "bot"
    narrow, _ = world.registry.keys.new("narrow", by="test", models=["other"])
    until(lambda: gateway.call("/v1/models", key=narrow).status == 200)
    assert [model["id"] for model in gateway.call("/v1/models", key=narrow).json["data"]] == ["other"]
    assert gateway.call("/v1/models/bot", key=narrow).error["code"] == "model_not_found"


def test_requests_spread_over_engines_by_what_is_in_flight(world: World) -> None:
    engines = [world.engine(name, "bot@1", pause_s=0.3) for name in ("e1", "e2")]
    world.route((1, 10_000))
    gateway = world.gateway()
    with gateway.client() as client:
        streams = [client.chat.completions.create(model="bot", messages=HELLO, stream=True) for _ in range(6)]
        assert [engine.at_work for engine in engines] == [3, 3]
        state = until(lambda: next((g for g in world.registry.fleet.gateways() if g.in_flight), None))
        assert state.in_flight == {"e1|bot@1": 3, "e2|bot@1": 3}
        for stream in streams:
            stream.close()
    until(lambda: world.registry.fleet.gateways()[0].in_flight == {})


def test_metrics_tell_requests_tokens_and_revisions(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    gateway.chat(stream=True)
    gateway.chat(model="nonsense")
    for series, value in {
        'tuneloop_requests_total{model="bot",status="200",version="1"}': 1,
        'tuneloop_requests_total{model="",status="404",version=""}': 1,
        'tuneloop_request_seconds_count{model="bot",version="1"}': 1,
        'tuneloop_time_to_first_token_seconds_count{engine="e1",model="bot",version="1"}': 1,
        'tuneloop_tokens_total{kind="prompt",model="bot",version="1"}': 7,
        'tuneloop_tokens_total{kind="completion",model="bot",version="1"}': 5,
        'tuneloop_route_revision{model="bot"}': 1,
        'tuneloop_engine_ready{engine="e1"}': 1,
        "tuneloop_registry_up": 1,
        "tuneloop_records_dropped_total": 0,
    }.items():
        assert gateway.metric(series) == value, series
    assert b"nonsense" not in gateway.call("/metrics").body


def test_a_whole_answer_is_the_engines_own_but_for_the_model(world: World) -> None:
    engine = world.engine("e1", "bot@1")
    world.route((1, 10_000))
    got = world.gateway().chat()
    sent = json.dumps(answer(engine.seen[0], 5), separators=(",", ":"), ensure_ascii=False)
    assert got.body.decode() == sent.replace('"model":"bot@1"', '"model":"bot"', 1)


def test_one_task_answers_a_connections_completions_in_order_and_ends_with_it(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    body = json.dumps({"model": "bot", "messages": HELLO}).encode()
    ask = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s"
        % (
            gateway.key.encode(),
            len(body),
            body,
        )
    )
    other = b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"

    def tasks() -> int:
        found = [one for one in gc.get_objects() if isinstance(one, asyncio.Task) and not one.done()]
        return sum("_answer_all" in str(one.get_coro()) for one in found)

    gc.collect()
    gc.disable()
    try:
        with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=10) as client:
            for ahead in ([ask], [ask, ask, other, ask], [other], [ask]):
                client.sendall(b"".join(ahead))
                got = b""
                while got.count(b"HTTP/1.1 ") < len(ahead) or not got.endswith(b"}"):
                    got += client.recv(65_536)
                statuses = re.findall(rb"HTTP/1.1 (\d+) ", got)
                assert statuses == [b"200" if one is ask else b"404" for one in ahead]
                until(lambda: tasks() == 1, what="one task of the connection")
        until(lambda: tasks() == 0, what="none without it")
        until(lambda: not any(isinstance(found, GatewayProtocol) for found in gc.get_objects()), what="nor itself")
    finally:
        gc.enable()


def test_an_answered_request_leaves_nothing_that_only_the_garbage_collector_would_find(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    gc.collect()
    gc.disable()
    try:
        for stream in (False, True, False):
            assert gateway.chat(stream=stream).status == 200
        assert gateway.call("/v1/models").status == 200
        until(lambda: not any(isinstance(found, Line) for found in gc.get_objects()), what="no request is kept")
    finally:
        gc.enable()
