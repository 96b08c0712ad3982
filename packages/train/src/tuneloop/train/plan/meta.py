"""The shape of a model whose blocks are not Llama's: built by transformers on torch's meta device, where no number is
stored. Costs the import of torch and transformers, some seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.plan.shapes import ModelShape


def shape_by_building(config: Mapping[str, Any], name: str) -> ModelShape:
    """Count the layers of the model that transformers would build.

    Raises:
        InvalidInput: transformers knows no causal language model of this kind, or its blocks differ from each other.
    """
    values = dict(config)
    kind = values.pop("model_type", None)
    try:
        known = AutoConfig.for_model(kind, **values)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{name}: transformers builds no causal language model of type {kind}: {error}") from error
    text = known.get_text_config()
    heads = int(text.num_attention_heads)
    linears: dict[str, tuple[int, int]] = {}
    counted = 0
    for path, module in model.named_modules():
        if module is model.get_output_embeddings() or type(module).__name__ not in {"Linear", "Conv1D"}:
            continue
        outputs, inputs = module.weight.shape if type(module).__name__ == "Linear" else module.weight.shape[::-1]
        linears[path.rpartition(".")[2]] = (int(inputs), int(outputs))
        counted += module.weight.numel()
    layers, hidden, vocab = int(text.num_hidden_layers), int(text.hidden_size), int(text.vocab_size)
    if counted != layers * sum(n_in * n_out for n_in, n_out in linears.values()):
        raise InvalidInput(f"{name}: the blocks of {kind} are not all alike (experts?); a plan would not be right")
    tied = bool(getattr(known, "tie_word_embeddings", False))
    every = sum(p.numel() for p in model.parameters())
    other = every - counted - vocab * hidden * (1 if tied else 2)
    widest = max(max(pair) for pair in linears.values())
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden // heads),
        intermediate=int(getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or widest),
        vocab=vocab,
        tied=tied,
        linears=linears,
        other=other,
        max_length=getattr(text, "max_position_embeddings", None),
    )
