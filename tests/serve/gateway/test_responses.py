"""The Responses and the Embeddings API through the gateway: an unchanged OpenAI client, and all that others have."""

from __future__ import annotations

import json

import openai
import pytest

from serve.gateway.faulty_engine import text_of
from serve.gateway.test_answers import recorded
from serve.gateway.world import World, until
from tuneloop.registry.access.limits import KeyLimits


def numbers(body: bytes) -> list[int]:
    """Of the events of a stream."""
    events = [json.loads(event.partition(b"\ndata: ")[2]) for event in body.split(b"\n\n")[:-1]]
    return [event["sequence_number"] for event in events]


def test_the_official_client_gets_responses_whole_and_streamed(world: World) -> None:
    engine = world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    with gateway.client() as client:
        whole = client.responses.create(
            model="bot", instructions="Be kind.", input="Hello?", user="u", metadata={"model": "bot@1"}
        )
        with client.responses.create(model="bot", input="Hello?", stream=True) as stream:
            events = list(stream)
    said = "".join(text_of(engine.seen[0], 5))
    assert (whole.model, whole.output_text, whole.metadata) == ("bot", said, {"model": "bot@1"})
    assert whole.id == f"resp_{whole._request_id}"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 12
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == said
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert {event.response.model for event in events if hasattr(event, "response")} == {"bot"}
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == said
    asked = engine.seen[0]
    assert asked.path == "/v1/responses"
    assert (asked.body["model"], asked.body["store"], asked.body["request_id"]) == ("bot@1", False, whole.id)
    request_id = str(last.response.id).removeprefix("resp_")
    record = recorded(world, request_id)
    assert (record.endpoint, record.stream, record.status) == ("response", True, 200)
    assert (record.prompt_tokens, record.completion_tokens) == (7, 8)
    assert recorded(world, str(whole._request_id)).key_source == "user"
    nulls = dict.fromkeys(("background", "store", "previous_response_id", "conversation"))
    assert gateway.call("/v1/responses", {"model": "bot", "input": "Hi"} | nulls).status == 200
    sent = engine.seen[-1].body
    assert (sent["background"], sent["store"]) == (False, False), "no engine has to make something of null"
    told = gateway.call("/v1/feedback", {"request_id": last.response.id, "thumb": "up"})
    assert (told.status, told.json["request_id"]) == (201, request_id)


def test_embeddings_pass_and_what_an_engine_does_not_offer_is_said_so(world: World) -> None:
    engine = world.engine("e1", "bot@1")
    world.route((1, 10_000))
    gateway = world.gateway()
    with gateway.client() as client:
        found = client.embeddings.create(model="bot", input=["a", "bcd"], encoding_format="float")
        assert (found.model, [one.embedding for one in found.data]) == ("bot", [[0.5, 1.0], [0.5, 3.0]])
        assert found.usage.prompt_tokens == 7
        engine.fault = "no_such_path"
        with pytest.raises(openai.BadRequestError, match="do not serve this endpoint") as refused:
            client.embeddings.create(model="bot", input="a")
    assert refused.value.code == "endpoint_not_supported"
    assert len(engine.seen) == 2, "it is asked once"
    record = until(lambda: next((one for one in world.registry.traffic.window("bot") if one.status == 200), None))
    assert (record.endpoint, record.prompt_tokens, record.completion_tokens) == ("embedding", 7, 0)
    assert gateway.metric('tuneloop_requests_total{model="bot",status="400",version="1"}') == 1


def test_what_one_engine_does_not_offer_another_is_asked_for(world: World) -> None:
    bad, good = world.engine("e1", "bot@1", fault="no_such_path"), world.engine("e2", "bot@1")
    world.route((1, 10_000))
    assert world.gateway().call("/v1/embeddings", {"model": "bot", "input": "a"}).status == 200
    assert (len(bad.seen), len(good.seen)) == (1, 1)


def test_a_response_that_was_only_announced_may_still_come_from_another_engine(world: World) -> None:
    world.engine("e1", "bot@1", fault="dies_once_announced")
    world.engine("e2", "bot@1", fault="dies_once_announced", faults_left=0)
    world.route((1, 10_000))
    gateway = world.gateway()
    for _ in range(2):
        with gateway.client() as client, client.responses.create(model="bot", input="Hello?", stream=True) as stream:
            assert [event.type for event in stream][-1] == "response.completed"
    assert gateway.metric('tuneloop_retries_total{model="bot"}') >= 1


def test_a_response_that_breaks_off_ends_with_an_error_clients_know(world: World) -> None:
    world.engine("e1", "bot@1", fault="dies_in_mid_stream")
    world.route((1, 10_000))
    gateway = world.gateway()
    with (
        gateway.client() as client,
        client.responses.create(model="bot", input="Hello?", stream=True) as stream,
        pytest.raises(openai.APIError, match="broke off"),
    ):
        list(stream)
    body = gateway.call("/v1/responses", {"model": "bot", "input": "Hello?", "stream": True}).body
    assert body.rpartition(b"event: ")[2].startswith(b'error\ndata: {"type":"error","code":"engine_error",')
    assert numbers(body) == list(range(7))


def test_a_key_pays_for_responses_and_embeddings_as_for_everything(world: World) -> None:
    world.engine("e1", "bot@1")
    world.route((1, 10_000))
    world.key, _ = world.registry.keys.new("x", by="test", limits=KeyLimits(tokens_per_minute=1_000))
    gateway = world.gateway()
    left = "x-ratelimit-remaining-tokens"
    got = gateway.call("/v1/responses", {"model": "bot", "input": "Hello?", "max_output_tokens": 900})
    assert (got.status, int(got.headers[left]) < 100) == (200, True), "what it may take is reserved"
    refused = gateway.call("/v1/responses", {"model": "bot", "input": "Hello?", "max_output_tokens": 1_100})
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    embedded = gateway.call("/v1/embeddings", {"model": "bot", "input": "Hello?"})
    assert embedded.status == 200
    assert 1_000 - int(embedded.headers[left]) < 50, "what the engine counted, and no answer's tokens"
