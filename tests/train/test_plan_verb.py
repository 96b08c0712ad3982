"""The verb `plan` on real recipes: what it reads, prints and refuses, and that it stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import Base
from tuneloop.train.data.sources import Places
from tuneloop.train.plan.rows import facts_of
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.data import Source
from tuneloop.train.recipe.named import named_recipes
from tuneloop.train.verbs.plan import plan as plan_verb


def test_the_sample_of_rows_is_labelled_as_training_labels_it(tiny: Base, tiny_recipe: Path) -> None:
    from tuneloop.train.data.label_audit import label_rows
    from tuneloop.train.data.labels import Labeller
    from tuneloop.train.data.rows import read_rows
    from tuneloop.train.tuning.models import load_tokenizer

    path = tiny_recipe.parent / "train.jsonl"
    labelled, audit = label_rows(Labeller(load_tokenizer(tiny), 96), read_rows(path).rows, tiny.template_digest)
    facts = facts_of((Source(path=path.name),), Places(path.parent), tiny.folder, 96)
    assert facts.audit is not None
    assert (facts.rows, facts.longest, facts.mean) == (40, audit.longest, audit.tokens / audit.rows)
    assert facts.source == "40 of 40 rows of train.jsonl, labelled", "each row once, also the longest"
    assert facts.audit.template_digest == audit.template_digest
    assert facts.padded_mean(1) == facts.mean < facts.padded_mean(4) <= facts.longest
    guessed = facts_of((Source(path=path.name),), Places(path.parent), None, 96)
    assert guessed.audit is None
    assert "guessed" in guessed.source
    assert len(labelled) == 40


def test_the_verb_says_everything_and_never_loads_torch(tiny_recipe: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from tuneloop.train.verbs.plan import plan\n"
        "done = CliRunner().invoke(plan, sys.argv[1:], catch_exceptions=False)\n"
        "assert not {'torch', 'transformers', 'mlflow'} & set(sys.modules), 'heavy'\n"
        "print(done.output)"
    )
    command = [sys.executable, "-c", code, str(tiny_recipe), "--device", "L40S", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    found = json.loads(done.stdout)
    parts = ("weights", "gradients", "optimizer", "activations", "loss", "cache", "overhead")
    memory = found["memory_bytes"]
    assert memory["low"] < memory["total"] == sum(memory[part] for part in parts) < memory["high"]
    assert found["fits"] == "yes"
    assert found["hours"]["low"] <= found["hours"]["estimate"] <= found["hours"]["high"]
    assert found["servable"] == {"yes": True, "why_not": None}
    assert found["label_audit"]["rows"] == 40, "each row once, also the longest"
    assert {cost["provider"] for cost in found["costs"]} == {"aws"}


def test_earlier_answers_that_training_would_not_learn_are_warned_of(tiny_recipe: Path) -> None:
    said = ["Indent it", "  like this", "2 + 2?", "4"]
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    (tiny_recipe.parent / "train.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    asked = [str(tiny_recipe), "--device", "L40S"]
    shown = CliRunner().invoke(plan_verb, asked, catch_exceptions=False).output
    assert "warning: answers with turns behind them that are read, but not learned: 1; the base's tokenizer" in shown
    found = json.loads(CliRunner().invoke(plan_verb, [*asked, "--json"], catch_exceptions=False).output)
    assert found["label_audit"]["unlearned_answers"] == 1


def test_a_recipe_of_stages_is_planned_stage_by_stage_and_together(tiny_folder: Path, tmp_path: Path) -> None:
    text = named_recipes()["rlhf"].text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_folder))
    (tmp_path / "data").mkdir()
    for name in ("train", "preferences", "questions", "test", "preferences-test"):
        (tmp_path / "data" / f"{name}.jsonl").touch()
    (tmp_path / "rlhf.yaml").write_text(text)
    asked = [str(tmp_path / "rlhf.yaml"), "--device", "L40S", "--rows", "1000"]
    found = json.loads(CliRunner().invoke(plan_verb, [*asked, "--json"], catch_exceptions=False).output)
    stages = found["stages"]
    assert [(stage["name"], stage["steps"]) for stage in stages] == [("sft", 126), ("reward", 63), ("ppo", 200)]
    for bound in ("low", "estimate", "high"):
        assert found["together"]["hours"][bound] == pytest.approx(sum(s["hours"][bound] for s in stages), abs=2e-4)
    cheapest = {
        (cost["provider"], cost["instance"], cost["spot"]): sum(
            Decimal(one["usd"])
            for stage in stages
            for one in stage["costs"]
            if (one["provider"], one["instance"], one["spot"]) == (cost["provider"], cost["instance"], cost["spot"])
        )
        for cost in stages[0]["costs"]
    }
    assert Decimal(found["together"]["usd"]) == min(cheapest.values())
    assert "a reward model scores answers" in stages[1]["servable"]["why_not"]
    shown = CliRunner().invoke(plan_verb, asked, catch_exceptions=False).output
    assert [line for line in shown.splitlines() if line.startswith(("stage ", "all stages"))] == [
        "stage sft",
        "stage reward",
        "stage ppo",
        "all stages",
    ]


def test_the_verb_says_what_cannot_be_served_and_reads_a_table_of_ones_own(tiny_recipe: Path, tmp_path: Path) -> None:
    tiny_recipe.write_text(tiny_recipe.read_text().replace("{rank: 4}", "{rank: 64}"))
    path = tmp_path / "prices.yaml"
    path.write_text(
        "devices:\n  mine: {memory_gib: 16, tflops_bf16: 65, tflops_fp32: 8, bandwidth_gb_s: 300, watts: 70}\n"
        'offers:\n  - {provider: cellar, device: mine, devices: 1, instance: box, usd: 0.1, as_of: "2026-01-01"}\n'
    )
    run = CliRunner().invoke
    done = run(plan_verb, [str(tiny_recipe), "--device", "MINE", "--prices", str(path)], catch_exceptions=False)
    assert "servable: no: tuning.rank 64" in done.output
    assert "cellar" in done.output
    assert "tokens learned" in done.output
    tiny_recipe.write_text(
        tiny_recipe.read_text().replace("{max_length: 96}", "{max_length: 96, template: instruction}")
    )
    here = run(plan_verb, [str(tiny_recipe)], catch_exceptions=False)
    assert "this CPU" in here.output
    tiny_recipe.write_text(tiny_recipe.read_text().replace("{rank: 64}", "{rank: 4}"))
    here = run(plan_verb, [str(tiny_recipe)], catch_exceptions=False)
    assert "servable: no: an engine asks with the base's chat template" in here.output
    with pytest.raises(InvalidInput, match="--provider nobody: the table has aws, azure, gcp"):
        run(plan_verb, [str(tiny_recipe), "--device", "H100", "--provider", "nobody"], catch_exceptions=False)


def test_a_target_the_model_lacks_is_said_before_anything_is_loaded(
    recipe_in: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = recipe_in(tmp_path)
    path.write_text(path.read_text().replace("{rank: 4}", "{rank: 4, target_modules: [c_attn]}"))
    assert load_recipe(path).recipe.tuning.method == "lora"
    with pytest.raises(InvalidInput, match="has no linear layer 'c_attn'; it has q_proj"):
        CliRunner().invoke(plan_verb, [str(path), "--device", "H100"], catch_exceptions=False)
