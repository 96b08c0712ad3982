"""A reward model learns which answer is preferred, reads the whole answer, and is published for others to name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from small_base import WORDS, make_small_base
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import Base
from tuneloop.train.fit.reward import (
    RewardModel,
    check_reward_folder,
    load_reward_model,
    padding_token,
)
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.outcome import Outcome
from tuneloop.train.job.run import run_job
from tuneloop.train.recipe import load_recipe
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag
from tuneloop.train.tuning import models


def preferences(first: int, count: int) -> str:
    """Answers with `good` are preferred to those with `bad`, wherever the word stands."""
    rows = []
    for n in range(first, first + count):
        one, two = WORDS[n % 50], WORDS[(n * 7 + 3) % 50]
        answers = [f"{one} {word}" if n % 2 else f"{word} {one}" for word in ("good", "bad")]
        three = WORDS[(n * 3 + n // 50) % 50]  # so that no later row is an earlier one again
        rows.append({"prompt": f"please {two} {three}", "chosen": answers[0], "rejected": answers[1]})
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_small_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def outcome(base: Base, tmp_path: Path, registry: Registry) -> Outcome:
    (tmp_path / "pairs.jsonl").write_text(preferences(0, 64))
    (tmp_path / "held.jsonl").write_text(preferences(300, 40))
    (tmp_path / "recipe.yaml").write_text(
        f"""base: {{model: {base.folder}}}
data: {{train: pairs.jsonl}}
tuning: {{rank: 4}}
objective: {{kind: reward, max_length: 64}}
optim: {{learning_rate: 1e-2}}
run: {{steps: 40, batch_size: 16, micro_batch: 16, dtype: float32}}
evaluate: {{sets: {{held: held.jsonl}}}}
publish: {{model: judge}}
"""
    )
    job = job_from_recipe(load_recipe(tmp_path / "recipe.yaml"), registry.settings.home)
    return run_job(job, registry, screen=Screen(), stop=StopFlag())


def test_a_reward_model_ranks_pairs_it_never_saw_and_is_published(
    outcome: Outcome, base: Base, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    was, now = outcome.preferences["held"]
    assert was.accuracy.low < 0.75
    assert now.accuracy.low > 0.8
    assert outcome.version.metrics["accuracy.held"] == now.accuracy.estimate
    assert "held" in outcome.table()
    folder = registry.versions.fetch(outcome.version, registry.settings.home / "fetched")
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".md"}
    check_reward_folder(folder, base, outcome.version.name)
    tokenizer = models.load_tokenizer(base)
    loaded = load_reward_model(folder, base, tokenizer, dtype="float32", device="cpu", attention="sdpa")
    asked = tokenizer("<|user|> please w9 <|end|><|assistant|> good w8 <|end|>", add_special_tokens=False)["input_ids"]
    worse = tokenizer("<|user|> please w9 <|end|><|assistant|> bad w8 <|end|>", add_special_tokens=False)["input_ids"]
    good, bad = loaded.scores([asked, worse])
    assert good > bad + 1
    with pytest.raises(InvalidInput, match="train it with objective reward"):
        check_reward_folder(base.folder, base, "base")


def test_the_end_of_an_answer_is_read_and_neighbours_change_nothing(base: Base) -> None:
    """pad and end are one token in this tokenizer, as in many: filled up with it, the end would count as padding."""
    tokenizer = models.load_tokenizer(base)
    assert tokenizer.pad_token == tokenizer.eos_token != padding_token(tokenizer)
    model = models.load_reward_base(base, dtype="float32", device="cpu", attention="sdpa", seed=1)
    rows = [[1, 5, 6, 0, 2, 7, 0], [1, 5, 6, 0, 2, 7], [1, 9, 0, 2, 8, 8, 8, 8, 0]]
    found = RewardModel(model, tokenizer, amp=False).scores(rows)
    for row, score in zip(rows, found, strict=True):
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
            assert score == pytest.approx(float(model.score(hidden)), abs=1e-5)
    assert found[0] != pytest.approx(found[1], abs=1e-3)
