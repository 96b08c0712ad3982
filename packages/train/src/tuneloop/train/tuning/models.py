"""Loading a base and its adapter for training or measuring; each automatic choice comes with its reason."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import Base
from tuneloop.train.choice import Choice
from tuneloop.train.recipe import TuningSection
from tuneloop.train.recipe.tuning import LoraTuning


def choose_device() -> Choice[str]:
    """CUDA when there is a device."""
    if torch.cuda.is_available():
        return Choice("cuda", f"{torch.cuda.get_device_name(0)} is there")
    return Choice("cpu", f"there is no CUDA device; {torch.get_num_threads()} threads")


def choose_attention(device: str, dtype: str) -> Choice[str]:
    """Flash attention 2 where it can run, PyTorch's own otherwise."""
    if device != "cuda":
        return Choice("sdpa", "flash attention needs a CUDA device")
    if dtype != "bfloat16":
        return Choice("sdpa", f"flash attention needs bfloat16, the recipe says {dtype}")
    if importlib.util.find_spec("flash_attn") is None:
        return Choice("sdpa", "flash_attn is not installed")
    return Choice("flash_attention_2", "flash_attn is installed and the device is CUDA")


def prepare_process(threads: int) -> None:
    """Quiet the libraries' own progress bars and set the number of CPU threads (0 leaves PyTorch's choice)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)


def load_tokenizer(base: Base) -> Any:
    """The base's tokenizer."""
    return AutoTokenizer.from_pretrained(base.folder)


def load_base(base: Base, *, dtype: str, device: str, attention: str) -> Any:
    """The base's weights, frozen, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return model.to(device).eval()


def new_adapter(model: Any, tuning: TuningSection, seed: int) -> Any:
    """The base with a fresh adapter that changes nothing yet.

    Raises:
        InvalidInput: no layer of the base bears a name in `tuning.target_modules`.
    """
    if not isinstance(tuning, LoraTuning):
        raise InvalidInput(f"tuning.method {tuning.method} is not built yet")
    targets = "all-linear" if tuning.adapts_all_linear else list(tuning.target_modules)
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=targets,
        use_rslora=tuning.rslora,
        use_dora=tuning.dora,
        task_type="CAUSAL_LM" if model.can_generate() else "SEQ_CLS",  # the latter trains and saves the head, too
    )
    torch.manual_seed(seed)
    try:
        with peft_as_it_is():
            return get_peft_model(model, config)
    except ValueError as error:
        raise InvalidInput(f"tuning.target_modules {targets}: {error}") from error


def load_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    """The base with a published adapter on it."""
    with peft_as_it_is():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


@contextmanager
def peft_as_it_is() -> Iterator[None]:
    """PEFT 0.21 and TRL 1.16 still ask transformers 5.23 by an old name; drop this when they no longer warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def adapter_shape(folder: Path) -> tuple[int, tuple[str, ...]]:
    """Rank and target modules of a saved adapter."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    targets = config["target_modules"]
    return int(config["r"]), (targets,) if isinstance(targets, str) else tuple(sorted(targets))


def servable(tuning: TuningSection, max_lora_rank: int = 16) -> str | None:
    """Why vLLM would refuse the adapter with its default settings; None when it would not."""
    if not isinstance(tuning, LoraTuning):
        return f"vLLM serves no {tuning.method}"
    if tuning.dora:
        return "vLLM does not serve DoRA adapters; set tuning.dora to false"
    if tuning.rank > max_lora_rank:
        return (
            f"tuning.rank {tuning.rank} is above the engine's default --max-lora-rank {max_lora_rank}; raise that one"
        )
    return None
