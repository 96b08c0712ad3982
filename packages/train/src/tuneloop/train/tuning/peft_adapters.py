"""The adapters PEFT has: LoRA (with its rank-stabilised and DoRA forms) and IA3, made, saved and loaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.recipe.tuning import Ia3Tuning, LowRankTuning

CONFIG = "adapter_config.json"


def add_low_rank(model: Any, tuning: LowRankTuning) -> Any:
    """The base with a fresh LoRA adapter that changes nothing yet.

    Raises:
        InvalidInput: no layer of the base bears a name in `tuning.target_modules`.
    """
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
    try:
        with peft_as_it_is():
            return get_peft_model(model, config)
    except ValueError as error:
        raise InvalidInput(f"tuning.target_modules {targets}: {error}") from error


def add_ia3(model: Any, tuning: Ia3Tuning) -> Any:
    """The base with fresh IA3 scales of one; which layers they scale is PEFT's choice for the architecture.

    Raises:
        InvalidInput: PEFT knows no layers for this architecture.
    """
    try:
        with peft_as_it_is():
            return get_peft_model(model, IA3Config(task_type="CAUSAL_LM"))
    except ValueError as error:
        kind = model.config.model_type
        raise InvalidInput(
            f"tuning.method {tuning.method} does not know the layers of {kind}: {error}; take lora"
        ) from error


def load_peft(model: Any, folder: Path, *, trainable: bool) -> Any:
    """The base with an adapter that PEFT saved."""
    with peft_as_it_is():
        loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    for config in loaded.peft_config.values():  # by its name PEFT would look for the base on the hub at each checkpoint
        config.base_model_name_or_path = model.config._name_or_path
    return loaded


def save_peft(model: Any, folder: Path, base_name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json; the base is named, never located."""
    # Embeddings are never trained here; left to itself PEFT would look for the base's vocabulary on the hub.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own empty card; ours is written later
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def peft_as_it_is() -> Iterator[None]:
    """PEFT 0.21 and TRL 1.16 still ask transformers 5.23 by an old name; drop this when they no longer warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
