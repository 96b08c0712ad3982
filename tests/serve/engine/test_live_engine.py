"""The engine agent with a real vLLM: adapters come and go as the routes say, and the defects of vLLM stay outside.

One vLLM for all; tests that end processes are in test_survival.py. Token comparisons are in float32, where equal means
equal; what is left out is bfloat16, where one token in some hundreds differs between batch shapes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.engine_support import MODEL, EngineAgent, publish_adapter, write_adapter
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import AdapterState, GatewayState, utc_now
from tuneloop.serve.engine.client import EngineClient

pytestmark = pytest.mark.engine
V1, V2 = f"{MODEL}@1", f"{MODEL}@2"
QUESTIONS = [
    f"What does {name} do?"
    for name in (
        *("textwrap.dedent", "os.path.join", "json.dumps", "re.compile", "shutil.copy", "math.isclose", "time.sleep"),
        *(
            "itertools.chain",
            "functools.partial",
            "random.choice",
            "glob.glob",
            "csv.reader",
            "socket.create_connection",
        ),
        *(
            "heapq.merge",
            "bisect.insort",
            "copy.deepcopy",
            "struct.pack",
            "hashlib.sha256",
            "uuid.uuid4",
            "zlib.compress",
        ),
    )
]


@pytest.fixture(autouse=True)
def usual_route(engine_agent: EngineAgent) -> Iterator[None]:
    """Every test begins and ends with version 1 serving and version 2 staged."""
    yield
    engine_agent.serve({2: 0, 1: 10_000})


@pytest.fixture
def one_thread() -> Iterator[None]:
    """vLLM is bound to the same cores: torch threads that wait for each other there take ten times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def chat(model: str, question: str, **changes: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 16}
    return body | {"return_token_ids": True} | changes


def tokens(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [answer["choices"][0]["token_ids"] for answer in answers]


def beat_gateway(engine_agent: EngineAgent, applied: int, in_flight: int) -> None:
    engine_agent.registry.fleet.beat_gateway(
        GatewayState(
            id="gateway-under-test",
            url="http://127.0.0.1:1",
            applied={MODEL: applied},
            in_flight={f"{engine_agent.id}|{V2}": in_flight},
            dropped_records=0,
            at=utc_now(),
        )
    )


def test_routed_adapters_are_loaded_warmed_and_ready(engine_agent: EngineAgent) -> None:
    state = engine_agent.wait_ready()
    assert state.adapters == {V1: AdapterState.READY, V2: AdapterState.READY}
    assert (state.base, state.url, state.detail) == (engine_agent.base.name, engine_agent.url, "")
    assert engine_agent.models() == {V1, V2}
    assert f"loaded {V1} in " in engine_agent.said()
    assert "warmed in " in engine_agent.said()


def test_an_unwanted_adapter_is_drained_and_not_unloaded_while_a_gateway_uses_it(engine_agent: EngineAgent) -> None:
    revision = engine_agent.route({1: 10_000}).revision
    try:
        for applied, in_flight in ((revision - 1, 0), (revision, 1)):
            beat_gateway(engine_agent, applied, in_flight)
            engine_agent.wait_until(lambda state: state.adapters.get(V2) is AdapterState.DRAINING)
            time.sleep(3)  # several passes of the agent, each of which could have unloaded it
            state = engine_agent.state()
            assert state is not None
            assert state.serves(V2)
            engine_agent.complete([chat(V2, QUESTIONS[0])], path="/v1/chat/completions")
        beat_gateway(engine_agent, revision, 0)
        engine_agent.wait_until(lambda state: V2 not in state.adapters)
        assert engine_agent.models() == {V1}
    finally:
        engine_agent.registry.fleet.forget_gateway("gateway-under-test")


# PEFT 0.21 asks every model for an attribute that transformers 5 deprecates; goes when PEFT asks for the new one.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_as_served_equals_the_adapter_as_trained(engine_agent: EngineAgent, one_thread: None) -> None:
    """Greedy tokens of 20 prompts, float32: transformers + PEFT against vLLM's chat completions; none may part."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    served = tokens(engine_agent.complete([chat(V1, q) for q in QUESTIONS], path="/v1/chat/completions"))
    plain = tokens(
        engine_agent.complete([chat(engine_agent.base.name, q) for q in QUESTIONS], path="/v1/chat/completions")
    )
    tokenizer = AutoTokenizer.from_pretrained(engine_agent.base)
    base = AutoModelForCausalLM.from_pretrained(engine_agent.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(engine_agent.home / "adapter-1")).eval()
    partings = []
    for question, answer in zip(QUESTIONS, served, strict=True):
        turns = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        # Greedy decoding takes the likeliest token at each place; one pass over the served text finds them all.
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        expected = logits.argmax(dim=-1).tolist()
        if expected != answer:
            at = next(i for i, (a, b) in enumerate(zip(expected, answer, strict=True)) if a != b)
            partings.append(f"{question} parts at token {at}: {expected[at]} trained, {answer[at]} served")
    assert partings == []
    assert sum(a != b for a, b in zip(plain, served, strict=True)) >= 15, "the adapter must change what the base says"


def test_a_base_request_among_adapter_requests_gets_no_adapter(engine_agent: EngineAgent, smollm2: Path) -> None:
    """After more loads than there are slots every slot of vLLM is filled, the last one too, which -1 points at."""
    home, base = engine_agent.home, engine_agent.base.name
    for seed in range(3, 7):
        folder = write_adapter(home / f"adapter-{seed}", smollm2, seed=seed)
        engine_agent.serve({publish_adapter(engine_agent.registry, folder, smollm2).version: 0, 1: 10_000})
    engine_agent.serve({2: 0, 1: 10_000})
    # A salt of its own keeps each request from re-using what another one left in the prefix cache.
    requests = [chat(model, q) for q in QUESTIONS[:2] for model in (base, V1, base, V2)]
    alone = [
        tokens(engine_agent.complete([request | {"cache_salt": f"alone {n}"}], path="/v1/chat/completions"))[0]
        for n, request in enumerate(requests)
    ]
    salted = [request | {"cache_salt": f"together {n}"} for n, request in enumerate(requests)]
    together = tokens(engine_agent.complete(salted, path="/v1/chat/completions"))
    assert together == alone
    assert alone[0] != alone[1]


def test_concurrent_prompt_logprobs_with_adapters_do_not_end_the_engine(engine_agent: EngineAgent) -> None:
    before = {process.pid for process in engine_agent.vllm()}
    requests = [
        {"model": model, "prompt": question, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        for question in QUESTIONS[:6]
        for model in (V1, V2, engine_agent.base.name)
    ]
    for answer in engine_agent.complete(requests):
        assert all(entry for entry in answer["choices"][0]["prompt_logprobs"][1:])
    assert {process.pid for process in engine_agent.vllm()} == before


def test_what_vllm_itself_refuses_is_told_in_its_words_and_changes_nothing(
    engine_agent: EngineAgent, tmp_path: Path
) -> None:
    there, nowhere, base = engine_agent.home / "adapter-2", tmp_path / "nowhere", engine_agent.base.name
    refused = [
        (V1, there, f"The lora adapter '{V1}' has already been loaded."),
        (base, there, f"The lora adapter '{base}' conflicts with a served base model."),
        ("nobody@1", nowhere, "Loading lora nobody@1 failed: No adapter found for "),  # it keeps the path to itself
    ]

    async def act() -> None:
        async with EngineClient(engine_agent.url) as client:
            before = await client.models()
            for name, folder, told in refused:
                with pytest.raises(InvalidInput, match=rf"^vLLM refuses to load {name} \(\d+\): {re.escape(told)}"):
                    await client.load(name, folder)
            await client.unload("nobody@1")
            assert await client.models() == before

    asyncio.run(act())


def test_a_bad_adapter_is_refused_with_its_reason_and_the_others_serve_on(
    engine_agent: EngineAgent, smollm2: Path
) -> None:
    home, registry = engine_agent.home, engine_agent.registry
    strange = publish_adapter(registry, home / "adapter-1", smollm2, base_digest="sha256:" + "0" * 64)
    dora = publish_adapter(registry, write_adapter(home / "dora", smollm2, seed=0, use_dora=True), smollm2)
    engine_agent.route({strange.version: 0, dora.version: 0, 2: 0, 1: 10_000})
    state = engine_agent.wait_until(
        lambda s: s.adapters.get(dora.name) is AdapterState.FAILED and strange.name in s.detail
    )
    assert strange.name not in state.adapters
    assert "start an engine with that base" in state.detail
    assert "DoRA (use_dora) is not served by vLLM" in state.detail
    assert state.serves(V1)
    assert engine_agent.models() >= {V1, V2}
    assert not engine_agent.models() & {strange.name, dora.name}
