"""`tuneloop export` on the tiny model: what it writes is what was published, and it says what quantising cost."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests_support import publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Version
from tuneloop.registry.versions.artifacts import check_publishable, file_digest, template_digest
from tuneloop.train.base import Base, base_of, read_base
from tuneloop.train.export.quantise import save_quantised, scales
from tuneloop.train.export.run import MANIFEST, export_version
from tuneloop.train.fit import reward
from tuneloop.train.job.begin import job_from_recipe
from tuneloop.train.job.run import run_job
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe import load_recipe
from tuneloop.train.screen import Screen
from tuneloop.train.stopping import StopFlag
from tuneloop.train.tuning import models
from tuneloop.train.verbs.export import export

TOLERANCE = 2e-5  # of a logit, float32: merging sums in another order


def trained(registry: Registry, recipe: Path, tuning: str) -> Version:
    text = recipe.read_text().replace("{rank: 4}", tuning).replace("5e-3", "2e-2").replace("generate: 2", "generate: 0")
    recipe.write_text(text)
    job = job_from_recipe(load_recipe(recipe), registry.settings.home)
    return run_job(job, registry, screen=Screen(io.StringIO()), stop=StopFlag(), threads=1).version


def exported(registry: Registry, version: Version, to: Path, **options: Any) -> Any:
    asked = {"merge": False, "quantize": None} | options
    return export_version(registry, version, to, screen=Screen(io.StringIO()), **asked)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(100, 140)[None]).logits
    return found


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("tuning", ["{rank: 4}", "{rank: 4, dora: true}", "{method: ia3}", "{method: qlora, rank: 4}"])
def test_merged_weights_answer_as_the_adapter_on_its_unquantised_base(
    tuning: str, registry: Registry, tiny_recipe: Path, tiny: Base, tmp_path: Path
) -> None:
    version = trained(registry, tiny_recipe, tuning)
    made = exported(registry, version, tmp_path / "out" / "merged", merge=True)
    base = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")
    untouched = logits(base)
    adapted = models.load_adapter(base, registry.versions.fetch(version, tmp_path / "fetched"), trainable=False)
    expected = logits(adapted)
    torch.testing.assert_close(logits(plain(made.folder)), expected, atol=TOLERANCE, rtol=0)
    assert float((expected - untouched).abs().max()) > 100 * TOLERANCE, "training must show, or this proves nothing"
    whole = read_base(made.folder)
    assert whole.template_digest == tiny.template_digest == template_digest(made.folder)
    assert (made.whole, made.whole_bytes) == (True, sum(p.numel() * 4 for p in plain(tiny.folder).parameters()))
    assert made.losses["old"].difference.estimate == pytest.approx(0, abs=1e-5)


def test_a_base_named_from_the_recipes_folder_is_found_again_from_the_registry(
    registry: Registry, tiny_recipe: Path, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = os.path.relpath(tiny.folder, tiny_recipe.parent)
    tiny_recipe.write_text(tiny_recipe.read_text().replace(str(tiny.folder), relative))
    monkeypatch.chdir(tiny_recipe.parent)
    version = trained(registry, Path(tiny_recipe.name), "{rank: 4}")
    monkeypatch.chdir("/")
    file = Lineage(registry.versions, version).recipe()
    found = base_of(version, file.recipe, registry.settings.home / "bases", relative_to=file.folder)
    assert found.folder.samefile(tiny.folder)
    assert (file.digest, f"model: {relative}" in file.text) == (version.recipe_digest, True), "word for word"


def test_an_adapter_is_exported_file_by_file_under_a_manifest_and_over_nothing(
    registry: Registry, tiny_recipe: Path, tmp_path: Path
) -> None:
    version = trained(registry, tiny_recipe, "{method: bottleneck, size: 4}")
    made = exported(registry, version, tmp_path / "adapter")
    check_publishable(made.folder)
    manifest = json.loads((made.folder / MANIFEST).read_text())
    assert (manifest["version"], manifest["whole"], manifest["digest"]) == ("bot@1", False, version.artifact_digest)
    names = {path.name for path in made.folder.iterdir()} - {MANIFEST}
    assert manifest["files"] == {name: file_digest(made.folder / name) for name in names}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} == names
    with pytest.raises(InvalidInput, match="is there already"):
        exported(registry, version, tmp_path / "adapter")
    with pytest.raises(InvalidInput, match="merges into no weight"):
        exported(registry, version, tmp_path / "other", merge=True)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith((".", "other"))} == set()


def test_int8_halves_the_layers_and_says_what_that_cost(
    registry: Registry, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = trained(registry, tiny_recipe, "{method: full}")
    with pytest.raises(InvalidInput, match="nothing to merge"):
        exported(registry, version, tmp_path / "whole", merge=True)
    monkeypatch.setenv("TUNELOOP_HOME", str(registry.settings.home))
    asked = ["bot@1", "--to", str(tmp_path / "small"), "--quantize", "int8", "--json"]
    found = json.loads(CliRunner().invoke(export, asked, catch_exceptions=False).stdout)
    assert (found["version"], found["whole"], found["quantization"]) == ("bot@1", True, "int8")
    loss = found["losses"]["old"]
    assert loss["published"] == pytest.approx(version.metrics["perplexity.old"], rel=1e-5)
    assert loss["exported"] != loss["published"]
    assert abs(loss["difference"]["estimate"]) < 0.05
    config = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"], config["ignore"]) == (
        "compressed-tensors",
        "int-quantized",
        ["lm_head"],
    )
    assert template_digest(tmp_path / "small") == version.template_digest


@pytest.mark.parametrize("asked", [{"merge": True}, {"quantize": "int8"}])
def test_a_reward_model_is_no_language_model_to_export(registry: Registry, tmp_path: Path, asked: Any) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / reward.MANIFEST).write_text("{}")
    version = publish_version(registry, tmp_path / "scores")
    with pytest.raises(InvalidInput, match=r"bot@1 is a reward model: .* without --merge and --quantize"):
        exported(registry, version, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_not_merged(registry: Registry, tiny_recipe: Path, tmp_path: Path) -> None:
    version = trained(registry, tiny_recipe, "{rank: 4}")
    with pytest.raises(InvalidInput, match="is not the one bot@1 was trained on"):
        exported(registry, version.model_copy(update={"base_digest": "sha256:other"}), tmp_path / "m", merge=True)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("kind", "drift"), [("int8", 0.05), ("int4", 0.6)])
def test_quantised_weights_are_read_back_close_to_what_they_were(kind: Any, drift: float, tmp_path: Path) -> None:
    """Mean absolute change of a logit, on random weights whose logits spread by about 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.1,
        )
    ).eval()
    expected = logits(model)
    save_quantised(model, kind, tmp_path)
    change = float((logits(plain(tmp_path)) - expected).abs().mean()) / float(expected.std())
    assert 0 < change < drift


def test_a_scale_found_by_search_rounds_with_less_error_than_one_that_spans_the_group() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 128)

    def error(scale: torch.Tensor) -> float:
        groups = weight.view(64, -1, 64)
        rounded = (groups / scale[..., None]).round().clamp(-8, 7) * scale[..., None]
        return float((rounded - groups).square().sum())

    spanning = weight.view(64, -1, 64).abs().amax(-1) / 7.5
    found = scales(weight, 64, bits=4)
    assert found.shape == (64, 2)
    assert error(found) < 0.95 * error(spanning)


def test_a_width_that_no_group_divides_is_refused_for_int4(tiny: Base, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="multiple of 32"):
        save_quantised(plain(tiny.folder), "int4", tmp_path)
