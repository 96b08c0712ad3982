"""What a request may hold: every refusal names the member, so that its author can find it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuneloop.serve.gateway.body import REFUSED, Ask, Endpoint, Limits, read
from tuneloop.serve.gateway.errors import ApiError
from tuneloop.serve.gateway.responses import items

LIMITS = Limits(prompt_chars=50, tokens=100, choices=2)
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "bot", "prompt": "Hi"}


def ask(body: object, endpoint: Endpoint = "chat") -> Ask:
    return read(body if isinstance(body, bytes) else json.dumps(body).encode(), endpoint, LIMITS)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": [{"role": "u" * 65, "content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "", "content": "Hi"}]}, "messages"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1"}}]}
                ]
            },
            "messages",
        ),
        ({"messages": [{"role": "user", "content": "x" * 51}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "x" * 51}}]}]}, "messages"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"a": "x" * 51}}}]}]},
            "messages",
        ),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"user": 7}, "user"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 101}, "max_completion_tokens"),
        ({"n": 3}, "n"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        *[({name: 1}, name) for name in REFUSED],
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"prompt_logprobs": False}, "prompt_logprobs"),
        ({"echo": True}, "echo"),
        ({"echo": True, "logprobs": True, "top_logprobs": 20}, "echo"),
        ({"echo": True, "stream": True}, "echo"),
        ({"echo": "true"}, "echo"),
    ],
)
def test_a_bad_chat_request_is_refused_with_the_member_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        ask(CHAT | change)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert param in refused.value.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        ({"prompt": ["x" * 26, "y" * 26]}, "prompt"),
        ({"prompt": ["a", "b", "c"]}, "n"),
        ({"prompt": ["a", "b"], "n": 2}, "n"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"echo": True, "logprobs": False}, "echo"),
        ({"prompt_logprobs": False}, "prompt_logprobs"),
    ],
)
def test_a_bad_completion_request_is_refused_with_the_member_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        ask(COMPLETION | change, "completion")
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_parameter_that_is_switched_off_does_no_harm(name: str) -> None:
    assert ask(CHAT | {name: None}).asked == "bot"


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
def test_false_turns_off_only_what_is_a_switch(endpoint: Endpoint) -> None:
    body = CHAT if endpoint == "chat" else COMPLETION
    assert ask(body | {"use_beam_search": False, "echo": False}, endpoint).asked == "bot"
    for name in REFUSED.keys() - {"use_beam_search"}:  # vLLM reads false as the number 0, which for some is on
        with pytest.raises(ApiError) as refused:
            ask(body | {name: False}, endpoint)
        assert refused.value.param == name


def test_nested_members_do_not_count_as_parameters() -> None:
    assert ask(CHAT | {"metadata": {"prompt_logprobs": 1, "model": "evil"}}).asked == "bot"


@pytest.mark.parametrize("text", [b"", b"x", b"[]", b'{"model":"bot","model":"bot"}', b'{"a":' + b"[" * 100_000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        ask(text)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


def test_text_parts_are_read_as_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    found = ask(CHAT | {"messages": [{"role": "system", "content": None}, {"role": "user", "content": parts}]})
    assert found.messages == (("system", ""), ("user", "one\ntwo"))


def test_a_stream_always_asks_the_engine_for_its_usage() -> None:
    assert json.loads(ask(CHAT).for_engine("bot@2", "req_1")) == CHAT | {"model": "bot@2"}
    for options in (None, {}, {"include_usage": False}):
        found = ask(CHAT | {"stream": True, "stream_options": options})
        assert not found.wants_usage
        assert json.loads(found.for_engine("bot@2", "req_1"))["stream_options"] == {"include_usage": True}
    theirs = {"include_usage": True, "continuous_usage_stats": True}
    found = ask(CHAT | {"stream": True, "stream_options": theirs})
    assert found.wants_usage
    assert json.loads(found.for_engine("bot@2", "req_1"))["stream_options"] == theirs


RESPONSE = {"model": "bot", "input": "Hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["Hi"]}, "input"),
        ({"input": [{"content": "Hi"}]}, "input"),
        ({"input": [{"role": "tool", "content": "Hi"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://10.0.0.1"}]}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}]}, "input"),
        ({"input": "x" * 51}, "input"),
        ({"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "x" * 51}]}]}, "input"),
        ({"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x" * 51}]}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "x" * 50}]}, "input"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x" * 50}]}, "input"),
        ({"instructions": 7}, "instructions"),
        ({"instructions": "x" * 49}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "mcp", "server_url": "http://10.0.0.1"}]}, "tools"),
        ({"max_output_tokens": 101}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"n": "2"}, "n"),
        *[({name: 1}, name) for name in (*REFUSED, *items.REFUSED)],
    ],
)
def test_a_bad_responses_request_is_refused_with_the_member_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        ask(RESPONSE | change, "response")
    assert (refused.value.status, refused.value.param) == (400, param)


def test_an_engine_is_told_a_responses_id_and_to_keep_nothing() -> None:
    told = {"model": "bot@2", "request_id": "resp_req_1", "store": False}
    for given in ({}, {"store": False}, {"store": None}):
        found = ask(RESPONSE | {"stream": True} | given, "response")
        assert json.loads(found.for_engine("bot@2", "req_1")) == RESPONSE | {"stream": True} | told


def test_a_request_as_long_as_is_allowed_passes_with_its_calls() -> None:
    call = CALL | {"arguments": "x" * 47}
    assert ask(RESPONSE | {"input": [{"role": "user", "content": "Hi"}, call]}, "response").asked == "bot"
    chat = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x" * 47}}]}
    assert ask(CHAT | {"messages": [{"role": "user", "content": "Hi"}, chat]}).asked == "bot"


def test_a_responses_turns_are_read_whoever_said_them() -> None:
    parts = [{"type": "output_text", "text": "one"}, {"type": "refusal", "refusal": "two"}]
    given = [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": parts},
        CALL,
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    ]
    assert ask(RESPONSE | {"input": given, "instructions": "Be kind."}, "response").messages == (
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "one\ntwo"),
        ("assistant", ""),
        ("tool", "done"),
    )


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": [{"role": "user", "content": "Hi"}]}, "input"),
        ({"input": [""] * 2_049}, "input"),
        ({"input": ["x" * 26, "y" * 26]}, "input"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"priority": 1}, "priority"),
    ],
)
def test_a_bad_embeddings_request_is_refused_with_the_member_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        ask(RESPONSE | change, "embedding")
    assert (refused.value.status, refused.value.param) == (400, param)
