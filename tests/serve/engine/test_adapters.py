"""An adapter that vLLM would misserve is refused before it is loaded, with everything that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serve.engine_support import write_adapter
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Version
from tuneloop.registry.versions.adapters import CONFIG, WEIGHTS, Base, Limits, base_shapes, check, reasons

VERSION = Version(
    model="m",
    version=1,
    kind="adapter",
    base="tiny",
    base_digest="sha256:base",
    template_digest="sha256:template",
    data_digest="d",
    data_rows=1,
    recipe_digest="r",
    code_commit="c",
    run_id="run",
    artifact_digest="sha256:a",
    artifact_bytes=1,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The shapes of a one-layer base, in the names real ones use."""
    folder = tmp_path / "base"
    folder.mkdir()
    shapes = {"self_attn.q_proj": (12, 8), "self_attn.v_proj": (4, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16)}
    tensors = {f"model.layers.0.{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors | {"lm_head.weight": np.zeros((5, 8), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def limits(base: Path) -> Limits:
    return Limits(Base("tiny", "sha256:base", "sha256:template"), 16, base_shapes(base))


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base, seed=0)


def test_a_sound_adapter_passes(adapter: Path, limits: Limits) -> None:
    assert reasons(adapter, VERSION, limits) == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 64}, "--max-lora-rank 64"),
        ({"rank_pattern": {"q_proj": 32}}, "rank 32 exceeds"),
        ({"r": 0}, "not a positive number"),
        ({"r": True}, "not a positive number"),
        ({"r": 4}, "has rank 8, and adapter_config.json knows only 4"),
        ({"rank_pattern": [1, 2]}, "rank_pattern is [1, 2], not a mapping"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "no positive number each"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"fan_in_fan_out": True}, "transposed weights"),
        ({"target_modules": ["q_proj", "lm_head", "c_attn"]}, "c_attn, lm_head would be ignored in silence"),
        ({"target_modules": ".*proj"}, "not a list"),
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"bias": "all"}, "bias 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
    ],
)
def test_a_configuration_vllm_would_misserve_is_refused(
    tmp_path: Path, base: Path, limits: Limits, config: dict[str, Any], told: str
) -> None:
    folder = write_adapter(tmp_path / "adapter", base, seed=0, **config)
    with pytest.raises(InvalidInput, match="m@1 cannot be served here") as refused:
        check(folder, VERSION, limits)
    assert told in str(refused.value)


def _truncate(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])


def _rename_layer(folder: Path) -> None:
    tensors = {name.replace("layers.0.", "layers.7."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def _other_width(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({n: np.zeros((8, 9), np.float32) if "lora_A" in n else t for n, t in tensors.items()}, folder / WEIGHTS)


def _lose_b(folder: Path) -> None:
    save_file({n: t for n, t in load_file(folder / WEIGHTS).items() if "lora_A" in n}, folder / WEIGHTS)


def _other_names(folder: Path) -> None:
    save_file({"weight": np.zeros((2, 2), np.float32)}, folder / WEIGHTS)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80\x04."), "never pickles"),
    (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
    (lambda folder: (folder / WEIGHTS).write_bytes(b"\x80\x04pickle"), "cut short or no safetensors"),
    (lambda folder: (folder / WEIGHTS).write_bytes((5).to_bytes(8, "little") + b"{oops"), "broken header"),
    (lambda folder: (folder / CONFIG).unlink(), f"{CONFIG} cannot be read"),
    (lambda folder: (folder / CONFIG).write_text("[]"), "no JSON object"),
    (_truncate, "cut short"),
    (_rename_layer, "the base has no such layer"),
    (_other_width, "belongs to another base"),
    (_lose_b, "has only its lora_A"),
    (_other_names, "is not the A or B of a LoRA"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGE, ids=[told for _, told in DAMAGE])
def test_a_damaged_folder_is_refused(
    adapter: Path, limits: Limits, damage: Callable[[Path], object], told: str
) -> None:
    damage(adapter)
    assert told in "; ".join(reasons(adapter, VERSION, limits))


def test_an_adapter_of_another_base_is_refused_by_digest(adapter: Path, limits: Limits) -> None:
    strange = VERSION.model_copy(update={"base_digest": "sha256:other"})
    (told,) = reasons(adapter, strange, limits)
    assert "trained on base tiny" in told
    assert "start an engine with that base" in told


def test_an_adapter_trained_with_another_chat_template_is_refused(adapter: Path, limits: Limits) -> None:
    strange = VERSION.model_copy(update={"template_digest": "sha256:other"})
    (told,) = reasons(adapter, strange, limits)
    assert "trained with chat template sha256:other" in told


def test_every_reason_is_told_at_once(tmp_path: Path, base: Path, limits: Limits) -> None:
    folder = write_adapter(tmp_path / "adapter", base, seed=0, use_dora=True, r=64)
    (folder / "code.py").write_text("print()")
    told = reasons(folder, VERSION, limits)
    expected = ["code.py", "rank 64 exceeds", "DoRA", "has rank 8, and"]  # by config and by weights
    assert len(told) == len(expected)
    assert all(any(words in reason for reason in told) for words in expected), told
    assert json.loads((folder / CONFIG).read_text())["r"] == 64
