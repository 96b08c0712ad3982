"""The list of architectures is what vLLM's registry says, and a plan tells what is not on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from train.vllm_models import architectures
from tuneloop.train.recipe.tuning import FullTuning, LoraTuning
from tuneloop.train.tuning.architectures import architecture_of, served_architectures, unserved
from tuneloop.train.verbs.plan import plan as plan_verb

ENGINE = Path(__file__).parents[2] / ".venv-engine"


def test_the_list_is_what_the_engines_registry_says() -> None:
    """Lines to be added or dropped stand in the difference."""
    [vllm] = ENGINE.glob("lib/python3.*/site-packages/vllm")
    assert dict(served_architectures()) == architectures(vllm)


def test_an_architecture_is_served_with_adapters_whole_or_not_known_to_be() -> None:
    lora, full = LoraTuning(), FullTuning(method="full")
    assert unserved("LlamaForCausalLM", lora) is None
    assert unserved("GPT2LMHeadModel", full) is None
    assert "serves GPT2LMHeadModel without adapters: train with tuning.method full, or merge" in str(
        unserved("GPT2LMHeadModel", lora)
    )
    for tuning in (lora, full):
        assert "names no StrangeForCausalLM" in str(unserved("StrangeForCausalLM", tuning))
        assert "names no architectures" in str(unserved(None, tuning))


@pytest.mark.parametrize(
    ("config", "named"),
    [({"architectures": ["A", "B"]}, "A"), ({}, None), ({"architectures": []}, None), ({"architectures": [1]}, None)],
)
def test_an_architecture_is_the_first_that_a_config_names(config: dict[str, object], named: str | None) -> None:
    assert architecture_of(config) == named


def test_a_plan_says_that_vllm_does_not_know_the_base_and_what_to_do(tiny_recipe: Path) -> None:
    first = tiny_recipe.read_text().splitlines()[0]
    base = Path(first.removeprefix("base: {model: ").removesuffix("}"))
    strange = tiny_recipe.parent / "strange"
    strange.mkdir()
    for path in base.iterdir():
        (strange / path.name).symlink_to(path)
    config = json.loads((base / "config.json").read_text())
    (strange / "config.json").unlink()
    (strange / "config.json").write_text(json.dumps(config | {"architectures": ["StrangeForCausalLM"]}))
    tiny_recipe.write_text(tiny_recipe.read_text().replace(str(base), str(strange)))
    said = CliRunner().invoke(plan_verb, [str(tiny_recipe), "--device", "L40S"], catch_exceptions=False).output
    assert "servable: no: vLLM 0.32 names no StrangeForCausalLM" in said
    assert "start an engine on this base before you train on it" in said
