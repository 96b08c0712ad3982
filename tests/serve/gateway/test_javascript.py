"""OpenAI's JavaScript client works against a gateway as against OpenAI: nothing but its address is changed.

It runs under node, which not every machine has; `make setup` installs the client where there is npm.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serve.gateway.faulty_engine import Fault, FaultyEngine, text_of
from serve.gateway.world import Address, World, until

ROOT = Path(__file__).parents[3]
CLIENT = ROOT / ".cache" / "javascript"
SCRIPT = Path(__file__).parent / "javascript" / "openai_client.mjs"
OLDEST_NODE = 20  # that the client runs on


def why_not() -> str:
    """Why the client cannot run on this machine; empty when it can."""
    node = shutil.which("node")
    if node is None:
        return "node is not installed"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        return f"node {version} is older than {OLDEST_NODE}, which OpenAI's client needs"
    if not (CLIENT / "node_modules" / "openai").is_dir():
        return (
            f"OpenAI's client is not in {CLIENT}: `make setup` installs it where there are npm and its registry; it "
            "tries once, so remove .ready there to have it try again"
        )
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def engine(world: World) -> FaultyEngine:
    world.route((1, 10_000))
    return world.engine("e1", "bot@1")


@pytest.fixture
def gateway(world: World, engine: FaultyEngine) -> Address:
    return world.gateway()


def did(gateway: Address, part: str) -> Any:
    """What the client saw of one part of the script."""
    command = ["node", str(SCRIPT), str(CLIENT), gateway.url, gateway.key, part]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_it_gets_whole_answers_with_our_headers_and_the_models(gateway: Address, engine: FaultyEngine) -> None:
    saw = did(gateway, "whole")
    (seen,) = engine.seen
    assert saw["answer"]["choices"][0]["message"]["content"] == "".join(text_of(seen, engine.words))
    assert saw["answer"]["model"] == "bot"
    assert saw["answer"]["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert saw["answer"]["id"] == f"chatcmpl-{saw['headers']['x-request-id']}"
    assert saw["headers"]["x-tuneloop-version"] == "bot@1"
    assert saw["models"] == ["bot"]


def test_it_streams(gateway: Address, engine: FaultyEngine) -> None:
    chunks = did(gateway, "stream")["chunks"]
    (seen,) = engine.seen
    said = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(said) == "".join(text_of(seen, engine.words))
    assert {chunk["model"] for chunk in chunks} == {"bot"}
    assert chunks[-1]["usage"]["total_tokens"] == 12


def test_it_calls_tools_whole_and_streamed(gateway: Address, engine: FaultyEngine) -> None:
    engine.says = ('{"ci', 'ty": "Oslo"}')
    saw = did(gateway, "tools")
    for choice in (saw["whole"], saw["streamed"]):
        (call,) = choice["message"]["tool_calls"]
        assert (choice["finish_reason"], call["id"], call["function"]["name"]) == ("tool_calls", "call_1", "weather_in")
        assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    assert {seen.body["tool_choice"] for seen in engine.seen} == {"required"}


def test_it_asks_for_structured_output_responses_and_embeddings(gateway: Address, engine: FaultyEngine) -> None:
    engine.says = ('{"degrees":', " -3}")
    assert did(gateway, "structured") == {"content": '{"degrees": -3}'}
    assert engine.seen[-1].body["response_format"]["json_schema"]["name"] == "weather"
    saw = did(gateway, "responses")
    assert saw["text"] == '{"degrees": -3}'
    assert (saw["kinds"][0], saw["kinds"][-1]) == ("response.created", "response.completed")
    assert [one["embedding"][0] for one in did(gateway, "embeddings")["vectors"]] == [0.5, 0.5]


def test_our_errors_are_its_own(gateway: Address) -> None:
    saw = did(gateway, "errors")
    assert {name: (error["class"], error["status"], error["code"], error["param"]) for name, error in saw.items()} == {
        "model": ("NotFoundError", 404, "model_not_found", "model"),
        "key": ("AuthenticationError", 401, "invalid_api_key", None),
        "body": ("BadRequestError", 400, "invalid_value", "max_tokens"),
        "stream": ("BadRequestError", 400, "invalid_value", "n"),
    }
    assert all(error["requestID"].startswith("req_") and error["message"] for error in saw.values())


@pytest.mark.parametrize("fault", ["dies_in_mid_stream", "error_as_later_event"])
def test_a_stream_that_breaks_off_is_an_error_to_it_and_no_end(
    gateway: Address, engine: FaultyEngine, fault: Fault
) -> None:
    engine.fault = fault
    error = did(gateway, "broken")["error"]
    assert error is not None
    assert error["known"], error


def test_a_stream_that_it_aborts_is_cancelled_at_the_engine(
    world: World, gateway: Address, engine: FaultyEngine
) -> None:
    engine.words, engine.pause_s = 2_000, 0.02
    assert did(gateway, "abort")["chunks"] >= 3
    until(lambda: engine.left == 1 and not engine.at_work)
    (record,) = until(lambda: world.registry.traffic.window("bot"))
    assert record.status == 499
