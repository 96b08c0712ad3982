"""Bad input gets one clear, OpenAI-shaped error, reaches no engine and leaves the gateway as it was."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from serve.gateway.faulty_engine import FaultyEngine
from serve.gateway.world import Address, World, until
from tuneloop.serve.gateway.body import PATHS

CHAT = "/v1/chat/completions"
GOOD = {"model": "bot", "messages": [{"role": "user", "content": "Hello?"}]}


@pytest.fixture
def engine(world: World) -> FaultyEngine:
    world.route((1, 10_000))
    return world.engine("e1", "bot@1")


@pytest.fixture
def gateway(world: World, engine: FaultyEngine) -> Address:
    return world.gateway(max_body_bytes=5_000, max_prompt_chars=1_000, max_tokens=64, body_timeout_s=0.5)


def test_bad_bodies_are_refused_and_reach_no_engine(gateway: Address, engine: FaultyEngine) -> None:
    cases: list[tuple[object, int, str | None, str]] = [
        (b"{", 400, None, "invalid_json"),
        (b"[]", 400, None, "invalid_json"),
        (b'{"model":"bot","model":"bot"}', 400, None, "invalid_json"),
        (b'{"a":' + b"[" * 4_000 + b"]" * 900, 400, None, "invalid_json"),
        (b'{"model":"bot","messages":"\xff"}', 400, None, "invalid_json"),
        ({"messages": GOOD["messages"]}, 400, "model", "missing_required_parameter"),
        (GOOD | {"model": 7}, 400, "model", "invalid_value"),
        (GOOD | {"model": "other"}, 404, "model", "model_not_found"),
        (GOOD | {"model": "bot@2"}, 403, "model", "pin_not_allowed"),
        (GOOD | {"messages": [{"role": "user", "content": "x" * 1_001}]}, 400, "messages", "context_length_exceeded"),
        (GOOD | {"max_tokens": 65}, 400, "max_tokens", "invalid_value"),
        (GOOD | {"prompt_logprobs": 1}, 400, "prompt_logprobs", "unsupported_parameter"),
        (GOOD | {"n": 1_000}, 400, "n", "invalid_value"),
        (b" " * 5_001, 413, None, "request_too_large"),
    ]
    for body, status, param, code in cases:
        got = gateway.call(CHAT, body)
        error = got.error
        assert (got.status, error["param"], error["code"]) == (status, param, code), (body, error)
        assert error["type"] == "invalid_request_error"
    assert engine.seen == []
    assert gateway.call(CHAT, GOOD).status == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic dGVzdDp0ZXN0", "Bearer tl-unknown", "Bearer \xff", "tl-x"]
)
def test_without_a_known_key_nobody_gets_in(gateway: Address, engine: FaultyEngine, header: str | None) -> None:
    lines = [] if header is None else [f"authorization: {header}"]
    for path in (*PATHS, "/v1/feedback", "/v1/models"):
        method = "GET" if path == "/v1/models" else "POST"
        status, body = raw(gateway, [f"{method} {path} HTTP/1.1", *lines, "content-length: 2"], b"{}")
        assert status == 401, path
        assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert engine.seen == []


def test_a_path_that_is_not_served_is_told_which_are(gateway: Address) -> None:
    got = gateway.call("/v1/rerank", GOOD)
    assert got.status == 404
    served = "/v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /v1/models, "
    assert f"this gateway serves {served}" in got.error["message"]


def test_a_revoked_key_is_refused_within_two_seconds(world: World, gateway: Address) -> None:
    secret, key = world.registry.keys.new("leaver", by="test")
    until(lambda: gateway.call(CHAT, GOOD, key=secret).status == 200, 2)
    world.registry.keys.revoke(key.id, by="test")
    until(lambda: gateway.call(CHAT, GOOD, key=secret).status == 401, 2)
    assert gateway.call(CHAT, GOOD).status == 200


def test_the_official_client_raises_its_own_errors(gateway: Address) -> None:
    with gateway.client() as client, pytest.raises(openai.NotFoundError, match="does not exist") as missing:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    wrong = Address(gateway.url, "tl-wrong")
    with wrong.client() as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_body_that_grows_past_the_limit_is_cut_off(gateway: Address) -> None:
    head = [f"POST {CHAT} HTTP/1.1", f"authorization: Bearer {gateway.key}", "transfer-encoding: chunked"]
    status, body = raw(gateway, head, b"".join(b"400\r\n" + b" " * 1024 + b"\r\n" for _ in range(6)))
    assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")


def test_a_body_that_never_comes_is_not_waited_for(gateway: Address) -> None:
    head = [f"POST {CHAT} HTTP/1.1", f"authorization: Bearer {gateway.key}", "content-length: 100"]
    status, body = raw(gateway, head, b"{")
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("GET", "/v1/responses", 405),
        ("GET", "/v1/responses/resp_1", 404),
        ("DELETE", "/v1/completions", 405),
        ("GET", "/v1/nothing", 404),
        *(
            ("POST", path, 404)
            for path in (
                *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/invocations"),
                *("/sleep", "/collective_rpc", "/reset_prefix_cache"),
            )
        ),
        ("GET", "/v1/feedback", 405),
        ("GET", "/docs", 404),
    ],
)
def test_other_paths_and_methods_get_an_openai_shaped_error(
    gateway: Address, engine: FaultyEngine, method: str, path: str, status: int
) -> None:
    got = gateway.call(path, method=method)
    assert got.status == status
    assert got.error["type"] == "invalid_request_error"
    assert engine.seen == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"request_id": "nonsense"}, "request_id"),
        ({"request_id": 7}, "request_id"),
        ({"request_id": None}, "request_id"),
        ({"score": 1.5}, "score"),
        ({"score": "0.5"}, "score"),
        ({"thumb": "sideways"}, "thumb"),
        ({"label": "x" * 201}, "label"),
        ({"colour": "red"}, "colour"),
        ({"thumb": None}, None),
        ({"thumb": None, "correction": "   \n\t"}, None),
        ({"thumb": None, "comment": "\u200b \x00"}, None),
        ({"comment": "this gateway keeps no text"}, None),
    ],
)
def test_bad_feedback_is_refused_and_not_stored(
    world: World, gateway: Address, change: dict[str, Any], param: str | None
) -> None:
    request_id = "req_" + "0" * 24
    got = gateway.call("/v1/feedback", {"request_id": request_id, "thumb": "up"} | change)
    assert (got.status, got.error["param"]) == (400, param)
    assert world.registry.traffic.feedback_for([request_id]) == {}


def test_bad_json_as_feedback_is_refused(gateway: Address) -> None:
    assert gateway.call("/v1/feedback", b"{").status == 400
    assert gateway.call("/v1/feedback", b" " * 5_001).error["code"] == "request_too_large"


def raw(gateway: Address, head: list[str], body: bytes) -> tuple[int, bytes]:
    """Bytes as no well-behaved client would send them; status and body of the answer."""
    url = urlsplit(gateway.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=10) as connection:
        connection.sendall("\r\n".join([*head, "host: x", "\r\n"]).encode("latin-1") + body)
        got = b""
        while b"\r\n\r\n" not in got or not got.rstrip().endswith(b"}"):
            chunk = connection.recv(65_536)
            assert chunk, got
            got += chunk
    return int(got.split(b" ", 2)[1]), got.partition(b"\r\n\r\n")[2]
