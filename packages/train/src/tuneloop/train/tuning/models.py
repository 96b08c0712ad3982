"""Loading models for training and measuring: `Loader` is the one way in for whole runs, the functions its parts.

A published folder says itself what it is: its `adapter_config.json` names the adapter's kind, and a folder without one
holds whole weights. Each automatic choice comes with its reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tuneloop.train.base import Base
from tuneloop.train.choice import Choice
from tuneloop.train.recipe import TuningSection
from tuneloop.train.recipe.tuning import BottleneckTuning, FullTuning, Ia3Tuning, QloraTuning
from tuneloop.train.tuning.bottleneck import (
    PEFT_TYPE,
    add_bottlenecks,
    has_bottlenecks,
    load_bottlenecks,
    save_bottlenecks,
)
from tuneloop.train.tuning.full import save_whole
from tuneloop.train.tuning.peft_adapters import CONFIG, add_ia3, add_low_rank, load_peft, save_peft
from tuneloop.train.tuning.quantised import load_quantised

Device = Literal["cpu", "cuda"]


def choose_device() -> Choice[Device]:
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
    if not torch.cuda.is_available():  # DeepSpeed would warn on standard output, where --json writes
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)


def load_tokenizer(base: Base) -> Any:
    """The base's tokenizer."""
    return AutoTokenizer.from_pretrained(base.folder)


@dataclass(frozen=True)
class Loader:
    """Loads what a run trains, and what it compares that with."""

    base: Base
    tuning: TuningSection
    dtype: str
    device: str
    attention: str
    reward_seed: int | None = None  # of a reward model's fresh head; none: the base speaks

    @property
    def measures_apart(self) -> bool:
        """Whether versions are measured on another base than they are trained on: the unquantised one, as served."""
        return isinstance(self.tuning, QloraTuning) and self.tuning.evaluate_unquantized

    def tunable(self, seed: int, start: Path | None = None) -> Any:
        """The model that is trained: the base as the method wants it, with a fresh adapter or the published `start`.

        Raises:
            InvalidInput: the base has no layers of the kind that the method adapts.
        """
        if isinstance(self.tuning, FullTuning):  # float32 whatever is computed in; see tuning/full.py
            model = _load(start or self.base.folder, dtype="float32", device=self.device, attention=self.attention)
            return model.requires_grad_(True)
        model = self._frozen_base()
        if start is not None:
            return load_adapter(model, start, trainable=True)
        return new_adapter(model, self.tuning, seed)

    def measurable(self, version: Path | None) -> Any:
        """The base, or a published version on it, frozen: as it is served, where that is measured."""
        if version is not None and not (version / CONFIG).is_file():
            return _load(version, dtype=self.dtype, device=self.device, attention=self.attention).requires_grad_(False)
        model = self._plain_base() if self.measures_apart else self._frozen_base()
        return model if version is None else load_adapter(model, version, trainable=False)

    def _frozen_base(self) -> Any:
        if isinstance(self.tuning, QloraTuning):
            return load_quantised(
                self.base, self.tuning, dtype=self.dtype, device=self.device, attention=self.attention
            )
        return self._plain_base()

    def _plain_base(self) -> Any:
        how = {"dtype": self.dtype, "device": self.device, "attention": self.attention}
        if self.reward_seed is not None:
            return load_reward_base(self.base, seed=self.reward_seed, **how)
        return load_base(self.base, **how)


def load_base(base: Base, *, dtype: str, device: str, attention: str) -> Any:
    """The base's weights, unquantised, in evaluation mode."""
    return _load(base.folder, dtype=dtype, device=device, attention=attention)


def load_reward_base(base: Base, *, dtype: str, device: str, attention: str, seed: int) -> Any:
    """The base's weights under a new head of one output, drawn from `seed`; frozen, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        base.folder, num_labels=1, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return model.to(device).eval()


def new_adapter(model: Any, tuning: TuningSection, seed: int) -> Any:
    """The base with a fresh adapter that changes nothing yet.

    Raises:
        InvalidInput: the base has no layers of the kind that the method adapts.
    """
    torch.manual_seed(seed)
    if isinstance(tuning, BottleneckTuning):
        return add_bottlenecks(model, tuning)
    if isinstance(tuning, Ia3Tuning):
        return add_ia3(model, tuning)
    if isinstance(tuning, FullTuning):
        raise TypeError("all weights take no adapter; Loader.tunable loads them")
    return add_low_rank(model, tuning)


def load_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    """The base with a published adapter of any kind on it."""
    if saved_kind(folder) != PEFT_TYPE:
        return load_peft(model, folder, trainable=trainable)
    load_bottlenecks(model, folder)
    return model if trainable else model.requires_grad_(False).eval()


def save_trained(model: Any, folder: Path, base: Base) -> None:
    """Write what was trained, as safetensors and JSON: the adapter alone, or all weights as a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if has_bottlenecks(model):
        save_bottlenecks(model, folder, base.name)
    elif hasattr(model, "peft_config"):
        save_peft(model, folder, base.name)
    else:
        save_whole(model, folder, base)


def saved_kind(folder: Path) -> str | None:
    """PEFT's name of a saved adapter's kind, or our own; None where the folder holds whole weights."""
    path = folder / CONFIG
    return str(json.loads(path.read_text(encoding="utf-8"))["peft_type"]) if path.is_file() else None


def adapter_shape(folder: Path) -> tuple[int | None, tuple[str, ...]]:
    """Rank and target modules of what was saved; no rank where the method has none."""
    if not (folder / CONFIG).is_file():
        return None, ()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    targets = config.get("target_modules") or ()
    return config.get("r"), (targets,) if isinstance(targets, str) else tuple(sorted(targets))


def _load(folder: Path, *, dtype: str, device: str, attention: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention)
    return model.to(device).eval()
