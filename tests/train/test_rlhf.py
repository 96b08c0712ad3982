"""The guide's three phases as one recipe, for real on a small model: SFT, a reward model, PPO against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from small_base import WORDS, make_small_base
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.rewards import Judge
from tuneloop.train.verbs.train import train

RECIPE = """\
base: {{model: {base}}}
data: {{train: answers.jsonl}}
tuning: {{rank: 8}}
run: {{steps: 25, batch_size: 16, micro_batch: 16, dtype: float32}}
optim: {{learning_rate: 1e-2, schedule: constant}}
evaluate: {{sets: {{held: held.jsonl}}, generate: 0}}
publish: {{model: bot}}
stages:
  - name: sft
  - name: reward
    data: {{train: pairs.jsonl}}
    objective: {{kind: reward, max_length: 64}}
    evaluate: {{sets: {{pairs: pairs-held.jsonl}}}}
  - name: ppo
    base: {{adapter: sft}}
    data: {{train: questions.jsonl}}
    objective:
      {{kind: ppo, reward_model: reward, max_prompt_length: 32, max_new_tokens: 6, kl_coefficient: 0.01,
       target_kl: null}}
    run: {{steps: 15, batch_size: 32, micro_batch: 32, checkpoint: {{every_s: 0.000001}}}}
"""


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": WORDS[n], "chosen": f"{WORDS[n]} good", "rejected": f"{WORDS[n]} bad"}
        for n in range(first, first + count)
    ]


@pytest.fixture
def recipe(tmp_path: Path, registry_home: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> Path:
    """Half of the answers end with `good`, half with `bad`; preferences want `good`."""
    monkeypatch.setenv("TUNELOOP_HOME", str(registry_home))
    answers = [{"prompt": word, "completion": f"{word} {('good', 'bad')[n % 2]}"} for n, word in enumerate(WORDS[:48])]
    lines(tmp_path / "answers.jsonl", answers[:40])
    lines(tmp_path / "held.jsonl", answers[40:])
    lines(tmp_path / "pairs.jsonl", pairs(0, 32))
    lines(tmp_path / "pairs-held.jsonl", pairs(40, 8))
    lines(tmp_path / "questions.jsonl", [{"prompt": WORDS[n]} for n in range(40)])
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(base=make_small_base(tmp_path / "base").folder))
    return path


class Killed(BaseException):
    """As abrupt as a signal: nothing on the way may catch it."""


def trained(recipe: Path, *options: str) -> tuple[dict[str, Any], str]:
    done = CliRunner().invoke(train, [str(recipe), "--json", *options], catch_exceptions=False)
    return {name: one["version"] for name, one in json.loads(done.stdout)["stages"].items()}, done.stderr


def killed_in(recipe: Path, step: int) -> None:
    """Train until the third stage judges the answers of this step."""
    asked, part = list[int](), Judge.part

    def judged(self: Judge, *answers: Any, **values: Any) -> Any:
        asked.append(1)
        if len(asked) == step:
            raise Killed
        return part(self, *answers, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "part", judged)
        with pytest.raises(Killed):
            CliRunner().invoke(train, [str(recipe)], catch_exceptions=False)


def test_rlhf_learns_what_is_preferred_and_goes_on_where_it_was_cut(recipe: Path) -> None:
    """Killed inside its last stage it goes on inside that stage; a change trains what follows from it anew."""
    killed_in(recipe, 7)
    refused = CliRunner().invoke(train, [str(recipe)])
    assert isinstance(refused.exception, InvalidInput)
    assert "--resume to go on with it, or --fresh" in str(refused.exception)

    made, said = trained(recipe, "--resume")
    assert said.count("skipped") == 2
    assert "resumed after step 6" in said
    names = {name: f"{version['model']}@{version['version']}" for name, version in made.items()}
    assert names == {"sft": "bot-sft@1", "reward": "bot-reward@1", "ppo": "bot@1"}
    assert made["reward"]["metrics"]["accuracy.pairs"] == 1.0
    with Registry.open() as registry:
        version = registry.versions.get("bot", 1)
        rewards = [value for _, value in registry.versions.metric_history(version.run_id, "reward.reward_model")]
        kl = [value for _, value in registry.versions.metric_history(version.run_id, "kl")]
        steps = [step for step, _ in registry.versions.metric_history(version.run_id, "loss")]
        kept = Lineage(registry.versions, version).recipe().recipe
    assert steps == list(range(1, 16)), "one run, each step once"
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 1.0
    assert kl[0] == pytest.approx(0.0, abs=1e-4)  # held to what the SFT stage made, not to the bare base
    assert kept.base.adapter == "bot-sft@1"
    assert "bot-reward@1" in json.dumps(kept.objective.model_dump())
    assert "a frozen copy of the adapter because training goes on from an earlier version" in said

    again, said = trained(recipe)
    assert again == made
    assert said.count("skipped") == 3

    lines(recipe.with_name("pairs.jsonl"), pairs(4, 32))
    third, said = trained(recipe)
    assert {name: version["version"] for name, version in third.items()} == {"sft": 1, "reward": 2, "ppo": 2}
    assert said.count("skipped") == 1
