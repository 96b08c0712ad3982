"""Events of the Responses API, with values: the same comes out however the network cut them, masked or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.gateway.faulty_engine import Seen, answer, events
from serve.gateway.test_mask import PEM, look
from tuneloop.registry.guard_policy import OutputGuards
from tuneloop.serve.gateway.mask import Find
from tuneloop.serve.gateway.responses.mask import ResponseMask
from tuneloop.serve.gateway.responses.relay import ResponseRelay, renamed
from tuneloop.serve.gateway.transcript import answer_text

SEEN = Seen("/v1/responses", {}, {"model": "bot@2", "request_id": "resp_r", "metadata": {"model": "bot@2"}})
MAIL = ("Write to ada@", "exam", "ple.com", " now", "")
SHOWN = "Write to <EMAIL_ADDRESS> now"


def raw(sent: Sequence[dict[str, Any]]) -> bytes:
    texts = [(event["type"], json.dumps(event, separators=(",", ":"))) for event in sent]
    return "".join(f"event: {kind}\ndata: {text}\n\n" for kind, text in texts).encode()


def read(shown: bytes) -> list[dict[str, Any]]:
    lines = [one for one in shown.decode().split("\n\n")[:-1] if not one.startswith(":")]
    found = [json.loads(one.partition("\ndata: ")[2]) for one in lines]
    assert [one.partition("\n")[0] for one in lines] == [f"event: {event['type']}" for event in found]
    return found


def said(found: Sequence[dict[str, Any]], family: str = "response.output_text") -> str:
    return "".join(event["delta"] for event in found if event["type"] == f"{family}.delta")


def mask() -> ResponseMask:
    return ResponseMask(OutputGuards(), look, lambda _: None, 100_000)


def masked(*sent: bytes, by: ResponseMask | None = None) -> list[dict[str, Any]]:
    by = by or mask()

    async def run() -> bytes:
        return b"".join([await by.push(one) for one in sent])

    return read(asyncio.run(run()))


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 6_000), max_size=12))
def test_events_pass_whole_renamed_and_masked_wherever_the_network_cuts(cuts: list[int]) -> None:
    sent = list(events(SEEN, 3, MAIL))
    text = b": ping\n\n" + raw(sent) + b"data: [DONE]\n\n"
    relay = ResponseRelay(engine_name="bot@2", asked="bot", wants_usage=False, keep_bytes=100_000)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [relay.push(text[start:end]) for start, end in pairwise(edges)]
    found = read(b"".join(pieces))
    expected = [dict(event) for event in sent]
    for event in expected:
        if "response" in event:
            event["response"] = event["response"] | {"model": "bot"}
    assert found == expected
    assert (relay.done, relay.error, relay.events) == (True, None, len(sent))
    assert relay.usage is not None
    assert (relay.usage.prompt_tokens, relay.usage.completion_tokens) == (7, len(MAIL))
    assert answer_text(relay.kept) == "".join(MAIL)
    by = mask()
    shown = masked(*[piece for piece in pieces if piece], by=by)
    assert said(shown) == SHOWN
    assert shown[-1]["response"]["output"][0]["content"][0]["text"] == SHOWN
    assert "ada@" not in json.dumps(shown)
    assert [event["sequence_number"] for event in shown] == list(range(len(shown)))
    assert answer_text(by.kept) == SHOWN


def test_what_comes_together_is_looked_at_once() -> None:
    looks: list[int] = []

    async def counted(runs: Sequence[str]) -> list[list[Find]]:
        looks.append(len(runs))
        return await look(runs)

    shown = masked(raw(list(events(SEEN, 3, MAIL))), by=ResponseMask(OutputGuards(), counted, lambda _: None, 0))
    assert (len(looks), said(shown)) == (1, SHOWN)
    body = answer(SEEN, 3, MAIL)
    body["output"] *= 2
    body["output"].append({"type": "reasoning", "summary": [{"type": "summary_text", "text": "eva@example.com"}]})
    whole = ResponseMask(OutputGuards(), counted, lambda _: None, 0).whole(json.dumps(body).encode())
    assert asyncio.run(whole).count(b"<EMAIL_ADDRESS>") == 3
    assert len(looks) == 2


def test_comments_are_no_events_of_a_response() -> None:
    relay = ResponseRelay(engine_name="bot@2", asked="bot", wants_usage=False, keep_bytes=0)
    assert relay.push(raw(list(events(SEEN, 3))[:3]) + b": ping\n\n").endswith(b": ping\n\n")
    assert relay.events == 3


def test_nothing_is_shown_before_an_engine_says_something() -> None:
    sent = list(events(SEEN, 3))
    relay = ResponseRelay(engine_name="bot@2", asked="bot", wants_usage=False, keep_bytes=0)
    assert relay.push(raw(sent[:2]) + b": ping\n\n") == b""
    assert [event["type"] for event in read(relay.push(raw(sent[2:3])))] == [event["type"] for event in sent[:3]]


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ({"type": "response.failed", "response": {"error": {"code": "server_error", "message": "it burns"}}}, "burns"),
        ({"type": "error", "code": "x", "message": "it burns", "param": None}, "burns"),
        ({"error": {"message": "it burns", "code": 500}, "type": ""}, "burns"),
    ],
)
def test_a_failure_is_one_in_every_form_it_is_told(event: dict[str, Any], why: str) -> None:
    relay = ResponseRelay(engine_name="bot@2", asked="bot", wants_usage=False, keep_bytes=0)
    assert relay.push(raw([event]))
    assert relay.error is not None
    assert why in relay.error.message


@pytest.mark.parametrize(
    "bad", [b"event: x\n\n", b"data: {nope\n\n", b"id: 7\n\n", b'data: {"a":' + b"[" * 9_000 + b"\n\n"]
)
def test_what_is_no_event_is_not_passed_on(bad: bytes) -> None:
    relay = ResponseRelay(engine_name="bot@2", asked="bot", wants_usage=False, keep_bytes=0)
    with pytest.raises(ValueError, match=r"."):
        relay.push(bad)
    with pytest.raises(ValueError, match=r"."):
        masked(bad)


def test_a_whole_response_is_masked_and_renamed_where_its_model_stands() -> None:
    body = json.dumps(answer(SEEN, 3, MAIL)).encode()
    shown = json.loads(renamed(asyncio.run(mask().whole(body)), "bot@2", "bot"))
    assert (shown["model"], shown["metadata"]) == ("bot", {"model": "bot@2"})
    assert shown["output"][0]["content"][0]["text"] == SHOWN
    assert answer_text([json.dumps(shown).encode()]) == SHOWN


def test_calls_and_reasoning_are_masked_and_text_that_never_ends_is_given_out_with_the_response() -> None:
    call: dict[str, Any] = {"item_id": "fc_1", "output_index": 1}
    item: dict[str, Any] = {"type": "function_call", "id": "fc_1", "call_id": "ada@example.com", "name": "f"}
    arguments = '{"to": "ada@example.com"}'
    part: dict[str, Any] = {"item_id": "rs_1", "output_index": 0, "content_index": 0}
    sent: list[dict[str, Any]] = [
        part | {"type": "response.reasoning_text.delta", "delta": "ada@example"},
        part | {"type": "response.reasoning_text.delta", "delta": ".com it is"},
        call | {"type": "response.function_call_arguments.delta", "delta": arguments[:12]},
        call | {"type": "response.function_call_arguments.delta", "delta": arguments[12:]},
        call | {"type": "response.function_call_arguments.done", "arguments": arguments},
        {"type": "response.output_item.done", "output_index": 1, "item": item | {"arguments": arguments}},
        {"type": "response.completed", "response": {"model": "b", "output": [item | {"arguments": arguments}]}},
    ]
    shown = masked(raw([event | {"sequence_number": at} for at, event in enumerate(sent)]))
    assert said(shown, "response.reasoning_text") == "<EMAIL_ADDRESS> it is"
    masked_arguments = '{"to": "<EMAIL_ADDRESS>"}'
    assert said(shown, "response.function_call_arguments") == masked_arguments
    assert [event["arguments"] for event in shown if "arguments" in event] == [masked_arguments]
    (closed,) = [event["item"] for event in shown if "item" in event]
    assert closed == shown[-1]["response"]["output"][0] == item | {"arguments": masked_arguments}
    assert [event["sequence_number"] for event in shown] == list(range(len(shown)))


def test_log_probabilities_of_a_response_go_where_its_text_is_masked() -> None:
    def token(one: str) -> list[dict[str, Any]]:
        return [{"token": one, "logprob": -0.5, "top_logprobs": []}]

    here = {"item_id": "m", "output_index": 0, "content_index": 0, "sequence_number": 0}
    tokens = ["Write ", "to ", "ada", "@example", ".com ", "now", "", "é"]
    text, every = "".join(tokens), [one for each in tokens for one in token(each)]
    sent = [here | {"type": "response.output_text.delta", "delta": one, "logprobs": token(one)} for one in tokens]
    sent.append(here | {"type": "response.output_text.done", "text": text, "logprobs": every})
    shown = masked(*(raw([event]) for event in sent))
    spelt = [one["token"] for event in shown for one in event["logprobs"]]
    assert (said(shown), spelt) == ("Write to <EMAIL_ADDRESS> nowé", ["Write ", "to ", "now", "", "é"])
    done = here | {"type": "response.output_text.done", "text": "fine", "logprobs": token("fine")}
    assert masked(raw([done]))[-1]["logprobs"] == token("fine")
    assert masked(raw([done | {"text": PEM}]))[-1]["text"] == "<PRIVATE-KEY>"
