"""Every method trains for real on the tiny model, and what it publishes is what was measured, row by row."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.versions.artifacts import check_publishable, template_digest
from tuneloop.train.base import Base, read_base
from tuneloop.train.data.label_audit import label_rows
from tuneloop.train.data.labels import LabelledRow, Labeller
from tuneloop.train.data.rows import read_rows
from tuneloop.train.evaluation.measure import pad_token_id, score_rows
from tuneloop.train.evaluation.statistics import RowScore, perplexity
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.outcome import Outcome
from tuneloop.train.job.run import run_job
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.tuning import BottleneckTuning, FullTuning, Ia3Tuning, LoraTuning, QloraTuning
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag
from tuneloop.train.tuning import models
from tuneloop.train.tuning.bottleneck import PEFT_TYPE
from tuneloop.train.tuning.going_on import cannot_go_on
from tuneloop.train.tuning.served import RankLimit, servable, serving_notes

METHODS = {
    "lora": "{rank: 4}",
    "rslora": "{rank: 4, rslora: true}",
    "dora": "{rank: 4, dora: true}",
    "qlora": "{method: qlora, rank: 4, compute_dtype: float32}",
    "int8": "{method: qlora, bits: 8, rank: 4}",
    "bottleneck": "{method: bottleneck, size: 8}",
    "ia3": "{method: ia3}",
    "full": "{method: full}",
}


def recipe_for(path: Path, method: str) -> Path:
    """The tiny recipe with another method, at a rate that shows within a few steps."""
    rate = "5e-3" if method == "full" else "2e-2"
    text = path.read_text().replace("tuning: {rank: 4}", f"tuning: {METHODS[method]}").replace("5e-3", rate)
    path.write_text(text.replace("steps: 3,", "steps: 6,").replace("generate: 2", "generate: 0"))
    return path


def train(registry: Registry, recipe: Path, said: io.StringIO | None = None, **changes: Any) -> Outcome:
    job = replace(job_from_recipe(load_recipe(recipe), registry.settings.home), **changes)
    return run_job(job, registry, screen=Screen(said or io.StringIO()), stop=StopFlag(), threads=1)


def held_out(recipe: Path, base: Base) -> list[LabelledRow]:
    rows = read_rows(recipe.with_name("test.jsonl")).rows
    return label_rows(Labeller(models.load_tokenizer(base), 96), rows, base.template_digest)[0]


def scored(model: Any, rows: list[LabelledRow], base: Base) -> tuple[RowScore, ...]:
    pad_id = pad_token_id(models.load_tokenizer(base))
    return tuple(score_rows(model, rows, pad_id=pad_id, check=lambda: None))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_its_published_version_answers_as_it_was_measured(
    method: str, registry: Registry, tiny_recipe: Path, tiny: Base
) -> None:
    said = io.StringIO()
    outcome = train(registry, recipe_for(tiny_recipe, method), said)
    version = outcome.version
    assert outcome.fitted.last_loss < outcome.fitted.first_loss - 0.01
    assert outcome.differences["old"].estimate < -0.01
    assert (version.kind, version.rank) == (
        "full" if method == "full" else "adapter",
        4 if "rank" in METHODS[method] else None,
    )

    folder = registry.versions.fetch(version, registry.settings.home / "fetched")
    check_publishable(folder)
    tuning = load_recipe(tiny_recipe).recipe.tuning
    loader = models.Loader(tiny, tuning, "float32", "cpu", "sdpa")
    rows = held_out(tiny_recipe, tiny)
    assert scored(loader.measurable(folder), rows, tiny) == outcome.after["old"].rows
    assert scored(loader.measurable(None), rows, tiny) == outcome.before["old"].rows
    again = loader.tunable(0, folder)
    assert any(value.requires_grad for value in again.parameters())
    if isinstance(tuning, QloraTuning):
        measured = version.metrics["perplexity_quantized.old"]
        assert perplexity(scored(again, rows, tiny)) == pytest.approx(measured, rel=1e-6)
        assert measured != version.metrics["perplexity.old"]
        assert f"trained on a base of {tuning.bits} bits" in said.getvalue()
    else:
        assert scored(again, rows, tiny) == outcome.after["old"].rows


def test_an_adapter_that_is_no_lora_trains_in_bfloat16(registry: Registry, tiny_recipe: Path) -> None:
    recipe = recipe_for(tiny_recipe, "ia3")
    recipe.write_text(recipe.read_text().replace("dtype: float32", "dtype: bfloat16"))
    assert train(registry, recipe, steps=2).fitted.steps == 2


@pytest.mark.parametrize("method", ["dora", "qlora", "bottleneck", "ia3", "full"])
def test_a_retraining_goes_on_from_its_parent(method: str, registry: Registry, tiny_recipe: Path) -> None:
    recipe = recipe_for(tiny_recipe, method)
    parent = train(registry, recipe)
    child = train(registry, recipe, parent=parent.version, start="parent", steps=2)
    assert child.before["old"].rows == parent.after["old"].rows
    assert child.fitted.first_loss < parent.fitted.first_loss - 0.01
    assert child.version.parent == 1


def test_a_retraining_from_the_base_is_compared_with_its_parent_whatever_made_that(
    registry: Registry, tiny_recipe: Path
) -> None:
    parent = train(registry, recipe_for(tiny_recipe, "full"))
    tiny_recipe.write_text(tiny_recipe.read_text().replace(METHODS["full"], METHODS["lora"]))
    child = train(registry, tiny_recipe, parent=parent.version, start="base", steps=1)
    assert child.before["old"].rows == parent.after["old"].rows
    assert child.fitted.first_loss == pytest.approx(parent.fitted.first_loss, rel=1e-5)
    assert (child.version.kind, child.version.parent) == ("adapter", 1)


def test_another_tuning_than_the_parents_is_refused_before_anything_runs(registry: Registry, tiny_recipe: Path) -> None:
    parent = train(registry, tiny_recipe).version
    tiny_recipe.write_text(tiny_recipe.read_text().replace("{rank: 4}", "{rank: 8}"))
    with pytest.raises(
        InvalidInput, match=r"bot@1: tuning differs \(rank 4 there and 8 here\); set retrain.start_from"
    ):
        train(registry, tiny_recipe, parent=parent, start="parent")
    assert [version.version for version in registry.versions.all("bot")] == [1]


def test_only_what_keeps_the_weights_meaning_may_change_between_parent_and_child() -> None:
    lora, qlora = LoraTuning(rank=4), QloraTuning(method="qlora", rank=4)
    assert cannot_go_on(lora, LoraTuning(rank=4, dropout=0.1)) is None
    assert cannot_go_on(lora, qlora) is None
    assert cannot_go_on(QloraTuning(method="qlora", rank=4, bits=8), qlora) is None
    for other in (LoraTuning(rank=4, alpha=16), LoraTuning(rank=4, dora=True), Ia3Tuning(method="ia3")):
        assert cannot_go_on(lora, other) is not None
    assert "method lora there and full here" in str(cannot_go_on(lora, FullTuning(method="full")))


def test_a_fresh_bottleneck_changes_nothing_and_a_trained_one_leaves_the_base_alone(
    tiny: Base, tiny_recipe: Path
) -> None:
    rows = held_out(tiny_recipe, tiny)
    plain = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")
    bare, frozen = scored(plain, rows, tiny), {name: value.clone() for name, value in plain.state_dict().items()}
    model = models.new_adapter(plain, BottleneckTuning(method="bottleneck", size=8), seed=0)
    assert scored(model, rows, tiny) == bare
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert sum(value.numel() for value in trained.values()) == 4 * (2 * 16 * 8 + 16 + 8)  # 2 layers × 2 blocks
    assert all(name in frozen or name in trained for name in model.state_dict())
    loss = model(input_ids=torch.tensor([rows[0].ids]), labels=torch.tensor([rows[0].labels])).loss
    loss.backward()
    assert all(value.grad is not None for value in trained.values())
    assert all(value.grad is None for name, value in model.named_parameters() if name not in trained)


def test_a_bottleneck_computes_what_its_paper_says(tiny: Base) -> None:
    """By hand on one MLP block: x + up(gelu(down(x))), with weights that do something."""
    plain = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")
    x = torch.randn(1, 3, 16)
    with torch.no_grad():
        inside = plain.model.layers[1].mlp(x)
        model = models.new_adapter(plain, BottleneckTuning(method="bottleneck", size=8), seed=0)
        adapter = model.model.layers[1].mlp.bottleneck
        adapter.up.weight.normal_()
        hidden = torch.nn.functional.gelu(inside @ adapter.down.weight.T + adapter.down.bias)
        expected = inside + hidden @ adapter.up.weight.T + adapter.up.bias
        torch.testing.assert_close(model.model.layers[1].mlp(x), expected)


def test_a_bottleneck_of_another_base_is_refused(tiny: Base, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")
    models.save_trained(models.new_adapter(model, BottleneckTuning(method="bottleneck"), 0), tmp_path / "a", tiny)
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["peft_type"] == PEFT_TYPE
    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(InvalidInput, match="belongs to another base than tiny"):
        models.load_adapter(other, tmp_path / "a", trainable=False)


def test_a_quantised_base_is_quantised_and_its_adapter_trains_in_float32(
    tiny: Base, tiny_recipe: Path, registry: Registry
) -> None:
    """TRL casts adapters on quantised bases to bfloat16; here they stay, and what is published is float32."""
    four, eight = QloraTuning(method="qlora"), QloraTuning(method="qlora", bits=8)
    for tuning, kind in ((four, "Linear4bit"), (eight, "Linear8bitLt")):
        model = models.Loader(tiny, tuning, "float32", "cpu", "sdpa").tunable(0)
        layers = [m for name, m in model.named_modules() if name.endswith("q_proj.base_layer")]
        assert [type(layer).__name__ for layer in layers] == [kind] * 2
    outcome = train(registry, recipe_for(tiny_recipe, "qlora"), steps=1)
    folder = registry.versions.fetch(outcome.version, registry.settings.home / "fetched")
    assert {value.dtype for value in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}


def test_a_quantised_base_that_was_measured_still_passes_gradients_on(tiny: Base, tmp_path: Path) -> None:
    """On CPUs with AVX-512 BF16 bitsandbytes repacks what was evaluated once, and its product there has no gradient."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    wide = tmp_path / "wide"  # every size a multiple of 64: what can be repacked
    shutil.copytree(tiny.folder, wide)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(**LlamaConfig.from_pretrained(wide).to_dict() | sizes | {"head_dim": 64})
    ).save_pretrained(wide)
    model = models.Loader(read_base(wide), QloraTuning(method="qlora"), "float32", "cpu", "sdpa").tunable(0)
    assert str(wide) not in Path("/proc/self/maps").read_text(), "its file is let go, and the memory with it"
    ids = torch.tensor([[5, 6, 7, 8]])

    def gradients() -> dict[str, torch.Tensor]:
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    after = gradients()
    assert any("layers.0." in name and value.abs().sum() > 0 for name, value in before.items())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_double_quantisation_and_compute_dtype_reach_bitsandbytes() -> None:
    from tuneloop.train.tuning.quantised import quantisation

    four = quantisation(QloraTuning(method="qlora", double_quantization=False), "bfloat16")
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", False)
    assert four.bnb_4bit_compute_dtype is torch.bfloat16
    assert (
        quantisation(QloraTuning(method="qlora", compute_dtype="float16"), "float32").bnb_4bit_compute_dtype
        is torch.float16
    )
    assert quantisation(QloraTuning(method="qlora", bits=8, int8_threshold=3.0), "float32").llm_int8_threshold == 3.0


def test_all_weights_train_in_float32_and_are_published_as_a_base_in_the_bases_own_format(
    tiny_folder: Path, tiny: Base, tmp_path: Path, registry: Registry, tiny_recipe: Path
) -> None:
    """A bfloat16 base trained at a rate whose steps bfloat16 would round away must still change."""
    import shutil

    from transformers import AutoModelForCausalLM

    half = tmp_path / "half"
    shutil.copytree(tiny_folder, half)
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(half)
    text = recipe_for(tiny_recipe, "full").read_text().replace(str(tiny_folder), str(half))
    tiny_recipe.write_text(text.replace("dtype: float32", "dtype: bfloat16").replace("5e-3", "1e-4"))
    outcome = train(registry, tiny_recipe)
    folder = registry.versions.fetch(outcome.version, registry.settings.home / "fetched")
    made = read_base(folder)
    assert template_digest(folder) == template_digest(half) == made.template_digest
    assert (folder / "tokenizer.json").read_bytes() == (half / "tokenizer.json").read_bytes()
    assert str(tmp_path) not in (folder / "config.json").read_text()
    was, now = load_file(half / "model.safetensors"), load_file(folder / "model.safetensors")
    assert was.keys() == now.keys()
    assert {value.dtype for value in now.values()} == {torch.bfloat16}
    assert outcome.differences["old"].high < 0


def test_what_vllm_serves_is_known_before_training() -> None:
    limit = RankLimit(16, "the engine's default --max-lora-rank")
    for served in (LoraTuning(), QloraTuning(method="qlora"), FullTuning(method="full")):
        assert servable(served, limit) is None
    assert "max-lora-rank" in str(servable(LoraTuning(rank=64), limit))
    assert servable(LoraTuning(rank=64), RankLimit(64, "an engine")) is None
    assert "DoRA" in str(servable(LoraTuning(dora=True), limit))
    assert "lm_head" in str(servable(LoraTuning(target_modules=("q_proj", "lm_head")), limit))
    assert "export" in str(servable(Ia3Tuning(method="ia3"), limit))
    assert "merges into no weight" in str(servable(BottleneckTuning(method="bottleneck"), limit))
    assert serving_notes(LoraTuning(), limit) == []
    assert "engine of their own" in serving_notes(FullTuning(method="full"), limit)[0]
    assert "served on the unquantised one" in serving_notes(QloraTuning(method="qlora"), limit)[0]


@pytest.mark.parametrize("method", ["ia3", "bottleneck"])
def test_a_base_whose_layers_a_method_does_not_know_is_refused(method: str, tiny: Base) -> None:
    tuning = Ia3Tuning(method="ia3") if method == "ia3" else BottleneckTuning(method="bottleneck")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.config = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa").config
    model.config.model_type = "unheard-of"
    with pytest.raises(InvalidInput, match="take lora"):
        models.new_adapter(model, tuning, 0)
