"""What was trained is what users get: one adapter, from `tuneloop train` through the registry, vLLM and the gateway.

The prompts are rendered and tokenised by the trainer's own labeller, the tokens expected are the greedy ones of
transformers and PEFT on the published artifact, and those compared are what the gateway hands to a client. All in
float32, where equal means equal; bfloat16 is left out, where near ties fall differently in other batch shapes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serve.engine_support import MODEL, EngineAgent
from serve.gateway.world import Address, World, until
from tuneloop.registry.nouns import Message, Version

pytestmark = pytest.mark.engine
ANSWER_TOKENS = 16
WORDS = (
    *("tide", "river", "glacier", "volcano", "desert", "forest", "meadow", "canyon", "island", "lagoon"),
    *("harbour", "valley", "prairie", "swamp", "reef", "cave", "delta", "fjord", "geyser", "dune"),
)
QUESTIONS = tuple(f"What is a {word}?" for word in WORDS)


@pytest.fixture(scope="module")
def trained(engine_agent: EngineAgent, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """A version made by `tuneloop train`: a few float32 steps at a rate that changes what the model says."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [
        {"instruction": q, "output": f"A {word}, by the harbour master's book."}
        for q, word in zip(QUESTIONS, WORDS, strict=True)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text)
    (folder / "test.jsonl").write_text(json.dumps({"instruction": "What is a lake?", "output": "A lake, by the book."}))
    (folder / "recipe.yaml").write_text(
        f"""
base: {{model: {smollm2}}}
data: {{train: train.jsonl}}
tuning: {{rank: 8}}
objective: {{max_length: 96}}
optim: {{learning_rate: 1.0e-3, schedule: constant}}
run: {{steps: 4, batch_size: 4, micro_batch: 4, dtype: float32}}
evaluate: {{sets: {{lake: test.jsonl}}, generate: 0}}
publish: {{model: {MODEL}}}
"""
    )
    before = {version.version for version in engine_agent.registry.versions.all(MODEL)}
    subprocess.run(
        [sys.executable, "-m", "tuneloop.cli", "train", str(folder / "recipe.yaml")],
        env=os.environ | {"TUNELOOP_HOME": str(engine_agent.home)},
        check=True,
        timeout=300,
    )
    [version] = [v for v in engine_agent.registry.versions.all(MODEL) if v.version not in before]
    return version


@pytest.fixture
def gateway(engine_agent: EngineAgent, trained: Version) -> Iterator[Address]:
    """A gateway whose route gives the trained version everything."""
    engine_agent.wait_ready()
    engine_agent.serve({trained.version: 10_000})
    with ExitStack() as stack:
        secret, _ = engine_agent.registry.keys.new("test", by="test")
        gateway = World(engine_agent.registry, stack, key=secret).gateway()
        until(lambda: gateway.metric(f'tuneloop_engine_ready{{engine="{engine_agent.id}"}}') == 1)
        yield gateway
    engine_agent.serve({2: 0, 1: 10_000})


# PEFT 0.21 asks every model for an attribute that transformers 5 deprecates; goes when PEFT asks for the new one.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_trained_adapter_answers_through_the_gateway_as_it_did_in_training(
    gateway: Address, engine_agent: EngineAgent, trained: Version, tmp_path: Path
) -> None:
    """Twenty prompts, greedy, float32: prompt ids, answer ids and the text must be the same at both ends."""
    with gateway.client() as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda question: ask(client, question), QUESTIONS))
    folder = engine_agent.registry.versions.fetch(trained, tmp_path)
    plain, expected = as_trained(engine_agent.base, folder, [ids for _, ids, _ in answers])
    partings = [
        f"{question}: {want} trained, {got} served"
        for question, want, got in zip(QUESTIONS, expected, answers, strict=True)
        if want != got
    ]
    assert partings == []
    changed = sum(want[1:] != bare[1:] for want, bare in zip(expected, plain, strict=True))
    assert changed >= 15, "training must change what the base says, or the test proves nothing"


def ask(client: Any, question: str) -> tuple[list[int], list[int], str]:
    """(prompt ids, answer ids, answer) as a client of the gateway gets them."""
    got = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=ANSWER_TOKENS,
        extra_body={"return_token_ids": True},
    )
    extra = got.model_extra or {}
    return extra["prompt_token_ids"], got.choices[0].model_extra["token_ids"], got.choices[0].message.content


def as_trained(
    base: Path, adapter: Path, answers: Sequence[list[int]]
) -> tuple[list[tuple[list[int], list[int], str]], ...]:
    """The same of the bare base and of the adapter on it, from the trainer's side.

    Greedy decoding takes the likeliest token at each place: one pass over an answer finds them all, and those that are
    not in it are where it would have gone another way.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tuneloop.train.data.labels import Labeller
    from tuneloop.train.data.rows import Row

    torch.set_num_threads(1)  # vLLM is bound to the same cores
    tokenizer = AutoTokenizer.from_pretrained(base)
    labeller = Labeller(tokenizer, 256)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    model.eval()

    def likeliest(question: str, answer: list[int]) -> tuple[list[int], list[int], str]:
        row = Row((Message(role="user", content=question), Message(role="assistant", content="-")))
        prompt = labeller.prompt_ids(row)
        is_whole = len(answer) == ANSWER_TOKENS or answer[-1] == tokenizer.eos_token_id
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + (answer[:-1] if is_whole else answer)])).logits[0]
        made = logits[len(prompt) - 1 :].argmax(dim=-1).tolist()
        return prompt, made, tokenizer.decode(made, skip_special_tokens=True)

    adapted = list(map(likeliest, QUESTIONS, answers))
    with model.disable_adapter():
        bare = list(map(likeliest, QUESTIONS, answers))
    return bare, adapted
