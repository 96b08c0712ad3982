"""What a stranger may send: no crash, no growth, no entry, and nothing of it in a header or an event of ours.

All against a gateway that is a process of its own; what each single limit does stands beside that limit's own tests.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.gateway.faulty_engine import FaultyEngine
from serve.gateway.world import Address, World, make_world, until
from tests_support import free_port
from tuneloop.registry.settings import RegistrySettings
from tuneloop.registry.tables import requests
from tuneloop.serve.gateway.body import PATHS

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"model": "bot", "messages": [{"role": "user", "content": "Hello?"}]}
OURS = {
    *("date", "content-type", "content-length", "transfer-encoding", "connection", "x-request-id", "allow"),
    *("x-tuneloop-version", "x-tuneloop-revision", "www-authenticate"),
}
TO_ENGINE = {"host", "content-type", "content-length", "accept", "accept-encoding", "x-request-id", "traceparent"}


@dataclass(frozen=True)
class Stage:
    """A gateway under attack, its engine, and its process."""

    world: World
    engine: FaultyEngine
    gateway: Address
    process: psutil.Process

    def is_well(self) -> bool:
        """Whether an honest client is answered."""
        return self.gateway.chat().status == 200


@pytest.fixture(scope="module")
def stage(empty_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One gateway for all of this file: that it bears one attack after another is part of the promise."""
    home = tmp_path_factory.mktemp("abuse") / "home"
    home.mkdir()
    for file in empty_state.iterdir():
        if file.is_file():
            (home / file.name).write_bytes(file.read_bytes())
    with ExitStack() as stack:
        world = make_world(RegistrySettings(home=home), stack)
        engine = world.engine("e1", "bot@1")
        world.route((1, 10_000))
        process = stack.enter_context(world.process(free_port(), TUNELOOP_GATEWAY_MAX_BODY_BYTES="20000"))
        yield Stage(world, engine, process.address, psutil.Process(process.pid))


names = st.sampled_from(
    [
        *("model", "messages", "stream", "stream_options", "user", "max_tokens", "n", "stop", "tools", "logprobs"),
        *("seed", "input", "instructions", "max_output_tokens", "encoding_format"),
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | names, inner, max_size=4),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "tool"]) | st.text(max_size=4), "content": values}
    ),
    max_size=3,
)
bodies = st.one_of(
    st.binary(max_size=200),
    values.map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda more, said: json.dumps(GOOD | {"messages": said} | more).encode(),
        st.dictionaries(names | st.text(max_size=12), values, max_size=4),
        messages | st.just(GOOD["messages"]),
    ),
    st.integers(1, 3_000).map(lambda deep: b'{"model":"bot","messages":' + b"[" * deep + b"]" * deep + b"}"),
)
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
headers = st.dictionaries(
    st.sampled_from(["x-tuneloop-unit", "traceparent", "x-request-id", "user", "accept", "content-type", "host", "te"]),
    header_values,
    max_size=3,
)


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(body=bodies, sent=headers, path=st.sampled_from([*PATHS, "/v1/feedback"]))
def test_whatever_is_in_body_and_headers_gets_an_answer_or_a_clear_refusal(
    stage: Stage, body: bytes, sent: dict[str, str], path: str
) -> None:
    asked = len(stage.engine.seen)
    host, _, port = stage.gateway.url.rpartition("/")[2].partition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    connection.request(
        "POST", path, body, {"authorization": f"Bearer {stage.gateway.key}"} | sent, encode_chunked=False
    )
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    assert answer.status in {200, 400, 403, 404}, said
    assert {name.lower() for name, _ in answer.getheaders()} <= OURS
    if answer.status == 200:
        assert set(stage.engine.seen[-1].headers) <= TO_ENGINE
        assert "traceparent" not in stage.engine.seen[-1].headers
        assert stage.engine.seen[-1].body["model"] == "bot@1"
    else:
        assert len(stage.engine.seen) == asked
        assert json.loads(said)["error"]["type"] == "invalid_request_error"


def test_a_trace_is_passed_on_and_what_is_none_is_not(stage: Stage) -> None:
    trace = f"00-{'4b' * 16}-{'00f0' * 4}-01"
    for sent, passed in ((trace, trace), (trace + "é", None), (trace.upper(), None), ("x" * 60_000, None), ("", None)):
        assert stage.gateway.call(CHAT, GOOD, traceparent=sent).status == 200
        assert stage.engine.seen[-1].headers.get("traceparent") == passed


def raw(stage: Stage, sent: bytes) -> bytes:
    """Everything that comes back for these bytes until the gateway closes, or is silent for a moment."""
    host, _, port = stage.gateway.url.rpartition("/")[2].partition(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=0.3) as connection:
        connection.sendall(sent)
        try:
            while piece := connection.recv(65_536):
                got += piece
        except (TimeoutError, ConnectionResetError):
            pass
    return got


BODY = json.dumps(GOOD).encode()
HIDDEN = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
LENGTH = b"content-length: %d" % len(BODY)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ([LENGTH, b"transfer-encoding: chunked"], b"0\r\n\r\n" + HIDDEN),
        ([b"transfer-encoding: chunked", LENGTH], b"0\r\n\r\n" + HIDDEN),
        ([LENGTH, b"content-length: 0"], BODY + HIDDEN),
        ([b"content-length: 0", LENGTH], BODY + HIDDEN),
        ([LENGTH, LENGTH], BODY + HIDDEN),
        ([LENGTH + b", %d" % len(BODY)], BODY + HIDDEN),
        ([b"content-length: +%d" % len(BODY)], BODY + HIDDEN),
        ([b"content-length: -1"], BODY + HIDDEN),
        ([b"content-length: 0x10"], BODY + HIDDEN),
        ([b"content-length: 99999999999999999999999"], BODY + HIDDEN),
        ([b"content-length : %d" % len(BODY)], BODY + HIDDEN),
        ([b"transfer-encoding: xchunked"], b"0\r\n\r\n" + HIDDEN),
        ([b"transfer-encoding: chunked, identity"], b"0\r\n\r\n" + HIDDEN),
        ([b"transfer-encoding: identity"], BODY + HIDDEN),
        ([b"transfer-encoding : chunked"], b"0\r\n\r\n" + HIDDEN),
        ([b"transfer-encoding:\x0bchunked"], b"0\r\n\r\n" + HIDDEN),
        ([b"x-a: b\r\n transfer-encoding: chunked"], HIDDEN),
        ([b"x-a: b\r\n\t" + LENGTH], HIDDEN),
        ([b"x-a: b\n" + LENGTH], BODY + HIDDEN),
        ([b"x-a: b\r" + LENGTH], BODY + HIDDEN),
        ([b"x-a: \x00", LENGTH], BODY + HIDDEN),
        ([b"transfer-encoding: chunked"], b"%x;%s\r\n%s\r\n0\n\n" % (len(BODY), b"a" * 20, BODY) + HIDDEN),
        ([b"transfer-encoding: chunked"], b"-1\r\n" + BODY + HIDDEN),
        ([b"transfer-encoding: chunked"], b"fffffffffffffffff\r\n" + BODY + HIDDEN),
        ([b"transfer-encoding: chunked"], b"%x\r\n%sX0\r\n\r\n" % (len(BODY), BODY) + HIDDEN),
    ],
)
def test_a_request_that_two_readers_could_cut_differently_is_refused_and_its_connection_closed(
    stage: Stage, lines: list[bytes], body: bytes
) -> None:
    asked = len(stage.engine.seen)
    head = [
        f"POST {CHAT} HTTP/1.1".encode(),
        b"host: x",
        b"authorization: Bearer " + stage.gateway.key.encode(),
        *lines,
    ]
    got = raw(stage, b"\r\n".join(head) + b"\r\n\r\n" + body)
    assert got.startswith(b"HTTP/1.1 400 "), got
    assert got.count(b"HTTP/1.1 ") == 1, "what was hidden in it was answered"
    answered, _, told = got.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: req_" in answered
    error = json.loads(told)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", None)
    assert error["message"]
    assert error["code"]
    assert len(stage.engine.seen) == asked
    assert stage.is_well()


def test_names_and_paths_that_try_to_lead_elsewhere_lead_nowhere(stage: Stage) -> None:
    pinning, _ = stage.world.registry.keys.new("pinner", by="test", may_pin=True)
    may_pin = Address(stage.gateway.url, pinning)
    until(lambda: may_pin.chat(model="bot@1").status == 200)
    asked = len(stage.engine.seen)
    for name in (
        *(
            "../bot",
            "bot/../bot",
            "./bot",
            "bot/",
            "/bot",
            "bot%00",
            "bot\x00",
            "bot\n",
            " bot",
            "BOT",
            "bot\u200b",
            "bоt",
        ),
        *(
            "bot@01",
            "bot@+1",
            "bot@1 ",
            "bot@\uff11",
            "bot@1@1",
            "bot@-1",
            "bot@0",
            "bot@2",
            "bot@",
            "@1",
            "bot@1/../2",
        ),
        *("smollm2", "base", "bot@" + "9" * 5_000, "x" * 10_000, "bot\r\nx-evil: 1", "\ud7ff", "${jndi:x}", "'; DROP"),
    ):
        got = may_pin.chat(model=name)
        assert (got.status, got.error["code"]) == (404, "model_not_found"), name
    host, _, port = stage.gateway.url.rpartition("/")[2].partition(":")
    for path in (
        *("//v1/chat/completions", "/v1//chat/completions", "/v1/./chat/completions", "/v1/x/../chat/completions"),
        *("/v1/chat/completions/", "/v1/load_lora_adapter", "/v1/models/..%2f..%2fetc", "/V1/chat/completions"),
        *("/metrics/../v1/chat/completions", "/v1/chat%2fcompletions/..", "*", "/tokenize", "/v1/unload_lora_adapter"),
    ):
        connection = HTTPConnection(host, int(port), timeout=10)
        connection.putrequest("POST", path)
        connection.putheader("authorization", f"Bearer {pinning}")
        connection.putheader("content-length", str(len(BODY)))
        connection.endheaders(BODY)
        assert connection.getresponse().status in {400, 404, 405}, path
        connection.close()
    assert len(stage.engine.seen) == asked


def test_guessing_at_keys_opens_nothing_and_every_miss_is_told_alike(stage: Stage) -> None:
    secret = stage.gateway.key
    stored = stage.world.registry.keys.all()[0]
    near = [
        secret[:-1],
        secret + "x",
        secret.upper(),
        secret[::-1],
        secret[3:],
        stored.id,
        stored.digest,
    ]
    near += [f"{secret},{secret}", "*", "%", "tl-", "null", "' OR 1=1 --", "tl-" + "é" * 40]
    near += [f"tl-{number:043d}" for number in range(300)]
    told = set()
    for guess in near:
        status, said = posted(stage, guess)
        assert status == 401, guess
        told.add(said)
    assert len(told) == 1, "the answers tell guesses apart"
    assert stage.is_well()


def posted(stage: Stage, key: str) -> tuple[int, bytes]:
    """Status and body for a good request with this key."""
    host, _, port = stage.gateway.url.rpartition("/")[2].partition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    connection.putrequest("POST", CHAT)
    connection.putheader("authorization", f"Bearer {key}".encode("latin-1"))
    connection.putheader("content-length", str(len(BODY)))
    connection.endheaders(BODY)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_a_flood_of_unknown_models_keys_and_paths_leaves_nothing_behind(stage: Stage) -> None:
    host, _, port = stage.gateway.url.rpartition("/")[2].partition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    asked = len(stage.engine.seen)

    def flood(first: int, count: int) -> None:
        for number in range(first, first + count):
            name = f"model-{number}-{'x' * 2_000}"
            body = json.dumps(GOOD | {"model": name, "user": name})
            key = stage.gateway.key if number % 3 else name
            path = CHAT if number % 5 else f"/v1/models/{name}"
            connection.request("POST" if path == CHAT else "GET", path, body, {"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status in {401, 404}

    records = stored_requests(stage)
    flood(0, 3_000)  # what is made once is made, and caches with a bound are full
    series, memory = len(stage.gateway.call("/metrics").body.splitlines()), stage.process.memory_info().rss
    flood(3_000, 3_000)
    connection.close()
    assert len(stage.gateway.call("/metrics").body.splitlines()) == series
    assert stage.process.memory_info().rss - memory < 3_000 * 500, "it kept names: each has 2,000 characters"
    assert len(stage.engine.seen) == asked
    assert stored_requests(stage) == records


def stored_requests(stage: Stage) -> int:
    """How many requests are on record once all that wait are stored."""
    until(lambda: stage.gateway.metric("tuneloop_records_pending") == 0)
    with stage.world.registry.database.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(requests)).scalar_one())


def test_what_a_model_says_opens_no_event_of_its_own(stage: Stage) -> None:
    said = ("a\n\ndata: [DONE]\n\n", "event: error\ndata: {}\r\n\r\n", ": b\u2028\x00", "id: 7\rretry: 0")
    stage.engine.says = said
    try:
        got = stage.gateway.chat(stream=True)
    finally:
        stage.engine.says = ()
    events = got.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    read = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    texts = [choice["delta"].get("content") or "" for event in read for choice in event["choices"]]
    assert "".join(texts) == "".join(said)
