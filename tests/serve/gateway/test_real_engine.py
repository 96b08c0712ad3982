"""The gateway in front of the real vLLM: what a client gets is what vLLM says, also while versions come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from serve.engine_support import MODEL, EngineAgent
from serve.gateway.world import Address, World, until
from tuneloop.registry.nouns import RequestRecord

pytestmark = pytest.mark.engine
QUESTIONS = ["What does textwrap.dedent do?", "Name a colour."]
TWENTY_MODULES = (
    *("abc", "ast", "bisect", "calendar", "csv", "dis", "enum", "glob", "heapq", "io"),
    *("json", "math", "os", "pathlib", "queue", "re", "shlex", "string", "time", "uuid"),
)
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}


@pytest.fixture
def gateway(engine_agent: EngineAgent) -> Iterator[Address]:
    """A gateway on the engine's registry, with a key that may pin versions."""
    engine_agent.wait_ready()
    engine_agent.serve({2: 0, 1: 10_000})
    with ExitStack() as stack:
        secret, _ = engine_agent.registry.keys.new("test", by="test", may_pin=True)
        world = World(engine_agent.registry, stack, key=secret)
        gateway = world.gateway()
        until(lambda: gateway.metric(f'tuneloop_engine_ready{{engine="{engine_agent.id}"}}') == 1)
        until(lambda: gateway.call("/v1/models").status == 200)  # it began with the view of the one before: no such key
        yield gateway
    engine_agent.serve({2: 0, 1: 10_000})


def chat(client: openai.OpenAI, model: str, question: str) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **GREEDY)


def streamed(client: openai.OpenAI, model: str, question: str, **more: Any) -> str:
    messages = [{"role": "user", "content": question}]
    with client.chat.completions.create(model=model, messages=messages, stream=True, **(GREEDY | more)) as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def tokens_for(client: openai.OpenAI, seconds: float) -> int:
    """About how many tokens each of three streams gets in that time; 80 at least, however slow the machine."""
    few: dict[str, Any] = {"max_tokens": 20, "extra_body": {"ignore_eos": True}}
    began = time.perf_counter()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: streamed(client, MODEL, QUESTIONS[0], **few), range(3)))
    return min(800, max(80, int(few["max_tokens"] / (time.perf_counter() - began) * seconds)))


def test_answers_through_the_gateway_are_those_of_vllm(gateway: Address, engine_agent: EngineAgent) -> None:
    direct = openai.OpenAI(base_url=f"{engine_agent.url}/v1", api_key="none", max_retries=0)
    answers: set[str] = set()
    with direct, gateway.client() as client:
        for version in (1, 2):
            name = f"{MODEL}@{version}"
            for question in QUESTIONS:
                expected, got = chat(direct, name, question), chat(client, name, question)
                assert got.choices == expected.choices
                assert got.usage == expected.usage
                said = expected.choices[0].message.content
                assert streamed(client, name, question) == streamed(direct, name, question) == said
                plain = client.completions.create(model=name, prompt=question, **GREEDY)
                assert plain.choices == direct.completions.create(model=name, prompt=question, **GREEDY).choices
                answers.add(said)
        assert chat(client, MODEL, QUESTIONS[0]).choices == chat(client, f"{MODEL}@1", QUESTIONS[0]).choices
    assert len(answers) > len(QUESTIONS), "the two versions answer alike: the test proves nothing"


def test_twenty_prompts_get_the_same_tokens_through_the_gateway(gateway: Address, engine_agent: EngineAgent) -> None:
    """The engine's own tests hold vLLM's tokens against the adapter as trained; here is the last hop."""
    direct = openai.OpenAI(base_url=f"{engine_agent.url}/v1", api_key="none", max_retries=0)
    with direct, gateway.client() as client, ThreadPoolExecutor(4) as pool:
        asked = [f"What is the standard library's module `{name}` for?" for name in TWENTY_MODULES]
        expected = list(pool.map(lambda question: chat(direct, f"{MODEL}@1", question), asked))
        got = list(pool.map(lambda question: chat(client, MODEL, question), asked))
    assert [answer.choices for answer in got] == [answer.choices for answer in expected]
    assert len({answer.choices[0].message.content for answer in got}) > 10


def test_responses_through_the_gateway_are_those_of_vllm(gateway: Address, engine_agent: EngineAgent) -> None:
    direct = openai.OpenAI(base_url=f"{engine_agent.url}/v1", api_key="none", max_retries=0)
    name = f"{MODEL}@1"
    asked: dict[str, Any] = {"instructions": "Be brief.", "input": QUESTIONS[1], "temperature": 0.0}
    asked |= {"max_output_tokens": 8, "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    with direct, gateway.client() as client:
        expected = direct.responses.create(model=name, **asked)
        got = client.responses.create(model=MODEL, **asked)
        with client.responses.create(model=MODEL, stream=True, **asked) as stream:
            events = list(stream)
        with pytest.raises(openai.BadRequestError, match="do not serve this endpoint"):
            client.embeddings.create(model=MODEL, input="Hello?")
    assert got.output_text == expected.output_text
    assert [part.logprobs for part in got.output[0].content] == [part.logprobs for part in expected.output[0].content]
    assert (got.usage, got.model, got.id) == (expected.usage, MODEL, f"resp_{got._request_id}")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == got.output_text
    assert (events[-1].type, events[-1].response.output_text) == ("response.completed", got.output_text)
    assert {event.response.model for event in events if hasattr(event, "response")} == {MODEL}


def test_structured_output_and_tools_are_those_of_vllm(gateway: Address, engine_agent: EngineAgent) -> None:
    """Both are held to their schema as tokens are drawn, so that a small model gets them right too."""
    shape = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", "blue"]}, "bright": {"type": "boolean"}},
        "required": ["colour", "bright"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "paint", "strict": True, "schema": shape}}
    tools = [
        {"type": "function", "function": {"name": name, "strict": True, "parameters": shape}}
        for name in ("paint", "wash")
    ]
    named = {"type": "function", "function": {"name": "wash"}}
    direct = openai.OpenAI(base_url=f"{engine_agent.url}/v1", api_key="none", max_retries=0)
    asked: list[dict[str, Any]] = [
        {"response_format": wanted},
        {"tools": tools, "tool_choice": named},
        {"tools": tools, "tool_choice": "required"},
    ]
    with direct, gateway.client() as client:
        for members in asked:
            request: Any = {"messages": [{"role": "user", "content": QUESTIONS[1]}], "temperature": 0.0, **members}
            expected = direct.chat.completions.create(model=f"{MODEL}@1", max_tokens=96, **request).choices[0]
            got = client.chat.completions.create(model=MODEL, max_tokens=96, **request).choices[0]
            with client.chat.completions.stream(model=MODEL, max_tokens=96, **request) as stream:
                streamed = stream.get_final_completion().choices[0]
            assert got.message.content == expected.message.content
            assert (said(got), called(got)) == (said(expected), called(expected))
            assert called(streamed) == called(expected), "with other blanks: a stream has the model's, the whole vLLM's"
            assert json.loads(said(streamed)) == json.loads(said(expected))
            assert json.loads(said(got)).keys() == {"colour", "bright"}
            assert bool(called(got)) == ("tools" in members)
            assert members.get("tool_choice") != named or called(got) == ["wash"]


def called(choice: Any) -> list[str]:
    """The tools that an answer calls."""
    return [call.function.name for call in choice.message.tool_calls or ()]


def said(choice: Any) -> str:
    """What an answer says: the arguments of the first tool it calls, or its text."""
    calls = choice.message.tool_calls
    text: str = calls[0].function.arguments if calls else choice.message.content
    return text


def test_what_vllm_refuses_reaches_the_client_as_its_own_error(gateway: Address) -> None:
    with gateway.client() as client:
        hello: Any = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(**hello, temperature=-1)
        with pytest.raises(openai.BadRequestError, match="context length"):
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 2_000}])


def test_a_hot_loaded_version_breaks_no_stream_and_takes_over(gateway: Address, engine_agent: EngineAgent) -> None:
    engine_agent.serve({1: 10_000})
    slot = f"{engine_agent.id}|{MODEL}@1"
    with gateway.client() as client, ThreadPoolExecutor(3) as pool:
        tokens = tokens_for(client, 10.0)
        long: dict[str, Any] = {"max_tokens": tokens, "extra_body": {"ignore_eos": True}}
        streams = [pool.submit(streamed, client, MODEL, QUESTIONS[0], **long) for _ in range(3)]
        until(lambda: engine_agent.registry.fleet.gateways()[0].in_flight == {slot: 3})
        engine_agent.serve({2: 0, 1: 10_000})
        revision = engine_agent.route({1: 0, 2: 10_000}).revision
        engine_agent.registry.fleet.wait_applied(MODEL, revision, timeout_s=2.0)
        assert not any(stream.done() for stream in streams), (
            "they ended before version 2 was there: this proves nothing"
        )
        assert gateway.chat(model=MODEL, max_tokens=1).headers["x-tuneloop-version"] == f"{MODEL}@2"
        said = {stream.result() for stream in streams}
    assert len(said) == 1
    assert len(said.pop()) > tokens
    records = until(lambda: len(found := served(engine_agent, tokens=tokens)) == 3 and found)
    assert {(record.served_version, record.status) for record in records} == {(1, 200)}


def test_a_new_request_does_not_wait_for_the_streams_that_run(gateway: Address, engine_agent: EngineAgent) -> None:
    """Where vLLM's processes share few cores, its scheduler must let others have the one it waits on."""
    engine_agent.serve({1: 10_000})
    slot = f"{engine_agent.id}|{MODEL}@1"
    with gateway.client() as client, ThreadPoolExecutor(3) as pool:
        tokens = tokens_for(client, 10.0)
        long: dict[str, Any] = {"max_tokens": tokens, "extra_body": {"ignore_eos": True}}
        streams = [pool.submit(streamed, client, MODEL, QUESTIONS[0], **long) for _ in range(3)]
        until(lambda: engine_agent.registry.fleet.gateways()[0].in_flight == {slot: 3})
        for _ in range(2):
            assert gateway.chat(model=MODEL, max_tokens=1).status == 200
            assert not any(stream.done() for stream in streams)
        for stream in streams:
            stream.result()


def served(engine_agent: EngineAgent, *, tokens: int) -> list[RequestRecord]:
    """The records of answers of that length."""
    return [r for r in engine_agent.registry.traffic.window(MODEL) if r.completion_tokens == tokens]


def test_a_client_that_leaves_frees_the_engine(gateway: Address, engine_agent: EngineAgent) -> None:
    with gateway.client() as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count."}],
            stream=True,
            max_tokens=900,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        stream.close()
    record = until(lambda: next((r for r in engine_agent.registry.traffic.window(MODEL) if r.status == 499), None))
    assert record.total_ms < 5_000
    until(lambda: running(engine_agent) == 0, 10)


def running(engine_agent: EngineAgent) -> float:
    """vLLM's own count of requests at work."""
    metrics = Address(engine_agent.url, "none").call("/metrics").body.decode()
    values = [line.rsplit(" ", 1)[1] for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")]
    return sum(map(float, values))
