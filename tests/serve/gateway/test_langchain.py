"""LangChain's client works against a gateway as against OpenAI: nothing but its address is changed."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import AuthenticationError, NotFoundError
from pydantic import BaseModel, SecretStr

from serve.gateway.faulty_engine import FaultyEngine
from serve.gateway.world import Address, World

HELLO = [SystemMessage("Be brief."), HumanMessage("Hello?")]
USAGE = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}


class Weather(BaseModel):
    """What it is like outside."""

    city: str
    degrees: int


@tool
def weather_in(city: str) -> str:
    """Look outside."""
    return f"cold in {city}"


@pytest.fixture
def engine(world: World) -> FaultyEngine:
    world.route((1, 10_000))
    return world.engine("e1", "bot@1")


@pytest.fixture
def gateway(world: World, engine: FaultyEngine) -> Address:
    return world.gateway()


def model_of(gateway: Address, **changes: Any) -> ChatOpenAI:
    fields: dict[str, Any] = {"model": "bot", "api_key": SecretStr(gateway.key), "base_url": f"{gateway.url}/v1"}
    return ChatOpenAI(**(fields | {"max_retries": 0, "timeout": 30} | changes))


def counted(message: Any) -> dict[str, int]:
    assert isinstance(message, AIMessage)
    assert message.usage_metadata is not None
    return {name: message.usage_metadata[name] for name in USAGE}  # type: ignore[literal-required]


def test_it_asks_for_whole_answers_and_streams_with_their_usage(gateway: Address, engine: FaultyEngine) -> None:
    engine.says = ("It ", "is ", "é ", "cold", ".")
    model = model_of(gateway)
    whole = model.invoke(HELLO)
    assert (whole.content, counted(whole)) == ("It is é cold.", USAGE)
    assert whole.response_metadata["model_name"] == "bot", "as it was asked, not as the engine knows it"
    pieces = list(model.stream(HELLO, stream_usage=True))
    assert "".join(str(piece.content) for piece in pieces) == whole.content
    assert len(pieces) >= len(engine.says)
    assert [counted(piece) for piece in pieces if isinstance(piece, AIMessage) and piece.usage_metadata] == [USAGE]
    assert [seen.body["messages"][1]["content"] for seen in engine.seen] == ["Hello?"] * 2


def test_it_binds_tools_and_tells_what_they_gave(gateway: Address, engine: FaultyEngine) -> None:
    engine.says = ('{"ci', 'ty": "Oslo"}')
    model = model_of(gateway).bind_tools([weather_in], tool_choice="weather_in")
    answer = model.invoke(HELLO)
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"], call["id"]) == ("weather_in", {"city": "Oslo"}, "call_1")
    gathered: Any = None
    for piece in model.stream(HELLO):
        gathered = piece if gathered is None else gathered + piece
    assert [(one["name"], one["args"]) for one in gathered.tool_calls] == [("weather_in", {"city": "Oslo"})]
    engine.says = ("Cold.",)
    told = [*HELLO, answer, ToolMessage(weather_in.invoke(call["args"]), tool_call_id=call["id"])]
    assert model_of(gateway).invoke(told).content == "Cold."
    turns = engine.seen[-1].body["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool"]
    assert (turns[2]["tool_calls"][0]["function"]["name"], turns[3]["content"]) == ("weather_in", "cold in Oslo")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_it_reads_structured_output(gateway: Address, engine: FaultyEngine, method: Any) -> None:
    engine.says = ('{"city": "Oslo", ', '"degrees": -3}')
    asked = model_of(gateway).with_structured_output(Weather, method=method)
    assert asked.invoke(HELLO) == Weather(city="Oslo", degrees=-3)
    body = engine.seen[-1].body
    schema = (
        body["response_format"]["json_schema"]["schema"]
        if method == "json_schema"
        else body["tools"][0]["function"]["parameters"]
    )
    assert schema["properties"].keys() == {"city", "degrees"}, "the engine is given the schema as it was sent"


def test_its_errors_are_those_of_openais_client(gateway: Address) -> None:
    with pytest.raises(NotFoundError, match="does not exist") as unknown:
        model_of(gateway, model="nobody").invoke(HELLO)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.request_id is not None
    with pytest.raises(AuthenticationError):
        list(model_of(gateway, api_key=SecretStr("tl-wrong")).stream(HELLO))
