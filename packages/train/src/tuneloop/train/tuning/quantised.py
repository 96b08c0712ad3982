"""A base whose weights are quantised while an adapter is trained on it: NF4 (4 bits) or LLM.int8(), by bitsandbytes.

Only the linear layers inside the blocks are quantised; embeddings, norms and the output head stay in the run's format.
PEFT's `prepare_model_for_kbit_training` is not used: it would hold embeddings and head in float32, gigabytes on a large
vocabulary. bitsandbytes has CPU kernels, right but slow: for trying a recipe, not for a run of length.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tuneloop.train.base import Base
from tuneloop.train.recipe.tuning import QloraTuning


def quantisation(tuning: QloraTuning, dtype: str) -> BitsAndBytesConfig:
    """What bitsandbytes is told; `compute_dtype: auto` computes in the run's own format."""
    if tuning.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=tuning.int8_threshold)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=tuning.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, dtype if tuning.compute_dtype == "auto" else tuning.compute_dtype),
    )


def load_quantised(base: Base, tuning: QloraTuning, *, dtype: str, device: str, attention: str) -> Any:
    """The base, quantised while it is read, frozen, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(
        base.folder,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        quantization_config=quantisation(tuning, dtype),
        device_map={"": device},
    )
    _keep_trainable(model)
    _let_go_of_the_file(model)
    return model.requires_grad_(False).eval()


def _let_go_of_the_file(model: Any) -> None:
    """On a CPU what is not quantised lies in the base's mapped file, and holds all of it in memory: copy it out.

    What was freed on the way, 100 to 400 MiB of a small base from load to load, the C library would keep: how much of
    it a pass finds of use is chance, and so was the run's peak.
    """
    for value in (*model.parameters(), *model.buffers()):
        if value.device.type == "cpu" and value.is_floating_point():
            value.data = value.data.clone()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)


def _keep_trainable(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on CPUs with AVX-512 BF16.

    It does so in the first evaluation pass, for good and in silence. No gradient passes through a layer then, so
    that a run that measures before it trains would teach the last layers alone. It also asserts that every layer's
    output is a multiple of 32.
    """
    from bitsandbytes.nn import Linear4bit  # noqa: PLC0415 (slow to import, and loaded by now)

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def trained_weights_kept(model: Any) -> Iterator[None]:
    """Undo what TRL's trainers do when they are built on a quantised base: they cast the adapter to bfloat16.

    A step below 1/256 of a weight rounds to nothing there, and an adapter that is gone on with would be cut short.
    """
    kept = {name: value.data for name, value in model.named_parameters() if value.requires_grad}
    yield
    for name, value in model.named_parameters():
        if name in kept:
            value.data = kept[name]
