"""A merged export, registered as whole weights, is served by an engine started for it: its greedy tokens are those of
the same folder in transformers, and users get them by the model's name.

In float32, where equal means equal. That merging keeps the logits is held in test_export; written in the base's own
bfloat16 the weights are rounded, which turns near ties, so the unmerged adapter is not compared with here. One engine
of its own, because the one that serving tests share holds another base.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serve.engine_support import EngineAgent
from serve.gateway.world import World, until
from tests_support import free_port
from tuneloop.registry import Registry
from tuneloop.registry.nouns import Message
from tuneloop.registry.routes.promotion import Change, promote
from tuneloop.registry.versions.registering import register
from tuneloop.registry.versions.sources import Folder
from tuneloop.train.data.labels import Labeller
from tuneloop.train.data.rows import Row
from tuneloop.train.screen import Screen

pytestmark = pytest.mark.engine
QUESTIONS = tuple(f"What is a {word}?" for word in ("tide", "river", "glacier", "volcano", "desert", "forest", "cave"))
ANSWER_TOKENS = 12


@pytest.fixture
def merged(registry: Registry, smollm2: Path, tmp_path: Path, offline: None) -> Path:
    """The merged export of a few float32 steps at a rate that changes what the model says."""
    from tuneloop.train.export.run import export_version
    from tuneloop.train.job.begin import job_from_recipe
    from tuneloop.train.job.run import run_job
    from tuneloop.train.recipe import load_recipe
    from tuneloop.train.stopping import StopFlag

    rows = [{"instruction": q, "output": f"{q[10:-1]}, by the harbour master's book."} for q in QUESTIONS]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"instruction": "What is a lake?", "output": "A lake."}))
    (tmp_path / "recipe.yaml").write_text(
        f"""
base: {{model: {smollm2}}}
data: {{train: train.jsonl}}
tuning: {{rank: 8, dora: true}}
objective: {{max_length: 96}}
optim: {{learning_rate: 1.0e-3, schedule: constant}}
run: {{steps: 3, batch_size: 4, micro_batch: 4, dtype: float32}}
evaluate: {{sets: {{lake: test.jsonl}}, generate: 0}}
publish: {{model: bot}}
"""
    )
    job = job_from_recipe(load_recipe(tmp_path / "recipe.yaml"), registry.settings.home)
    screen = Screen(io.StringIO())
    version = run_job(job, registry, screen=screen, stop=StopFlag()).version
    return export_version(registry, version, tmp_path / "merged", merge=True, quantize=None, screen=screen).folder


@pytest.fixture
def engine(registry: Registry, merged: Path, smollm2: Path) -> Iterator[EngineAgent]:
    made = register(registry, "whole", Folder(merged), base=smollm2, by="ada", reason="test")
    agent = EngineAgent(registry, merged, registry.settings.home, free_port(), version=made.name)
    agent.start()
    try:
        agent.wait_ready()
        yield agent
    finally:
        agent.stop()


def test_a_merged_dora_adapter_is_served_as_whole_weights_and_answers_as_its_folder_does_in_transformers(
    engine: EngineAgent, merged: Path, smollm2: Path, registry: Registry
) -> None:
    assert "no route names it" in engine.wait_until(lambda state: bool(state.detail)).detail
    registry.gates.approve("whole", 1, by="bob", reason="test")
    promote(registry, "whole", 1, Change("bob", "test"))
    with ExitStack() as stack:
        secret, _ = registry.keys.new("test", by="test")
        gateway = World(registry, stack, key=secret).gateway()
        until(lambda: gateway.metric(f'tuneloop_engine_ready{{engine="{engine.id}"}}') == 1)
        body = {"temperature": 0, "max_tokens": ANSWER_TOKENS, "messages": [{"role": "user", "content": QUESTIONS[0]}]}
        answer = gateway.call("/v1/chat/completions", {"model": "whole"} | body)
        assert (answer.status, answer.headers["x-tuneloop-version"]) == (200, "whole@1")
        direct = engine.complete([{"model": engine.version} | body], path="/v1/chat/completions")[0]
        assert answer.json["choices"][0]["message"] == direct["choices"][0]["message"]
    prompts = prompts_of(smollm2)
    asked = [
        {
            "model": engine.version,
            "prompt": prompt,
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
            "return_token_ids": True,
        }
        for prompt in prompts
    ]
    served = [answer["choices"][0]["token_ids"] for answer in engine.complete(asked)]
    bare, expected = (likeliest(folder, prompts, served) for folder in (smollm2, merged))
    assert served == expected
    assert sum(a != b for a, b in zip(bare, expected, strict=True)) >= 5, "training must show, or this proves nothing"


def prompts_of(base: Path) -> list[list[int]]:
    """The questions as token ids."""
    from transformers import AutoTokenizer

    labeller = Labeller(AutoTokenizer.from_pretrained(base), 256)
    return [
        labeller.prompt_ids(Row((Message(role="user", content=q), Message(role="assistant", content="-"))))
        for q in QUESTIONS
    ]


def likeliest(folder: Path, prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """What a folder's model answers greedily, by transformers.

    One pass over an answer finds the likeliest token at each place; those that are not in it are where the model would
    have gone another way.
    """
    import torch

    from tuneloop.train.base import read_base
    from tuneloop.train.tuning import models

    model = models.load_base(read_base(folder), dtype="float32", device="cpu", attention="sdpa")
    made = []
    for prompt, answer in zip(prompts, answers, strict=True):
        is_whole = len(answer) == ANSWER_TOKENS or answer[-1] == model.config.eos_token_id
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + (answer[:-1] if is_whole else answer)])).logits[0]
        made.append(logits[len(prompt) - 1 :].argmax(dim=-1).tolist())
    return made
