"""A model's shape from its config, without its weights: what a plan multiplies.

`config.json` of a folder, the header of a GGUF file, or the config alone from the hub. Llama-like models are counted by
hand, exactly; every other one is built by transformers on torch's meta device, where no number is stored (seconds).
Shapes: a linear layer is (inputs, outputs).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import asking_the_hub, find_gguf, made_before
from tuneloop.train.tuning.architectures import architecture_of

_LLAMA_LIKE = {  # model type → architecture
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_BIASED = {"qwen2": ("q_proj", "k_proj", "v_proj")}
_NORMED_HEADS = {"qwen3"}


@dataclass(frozen=True)
class ModelShape:
    """What memory and time follow from."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    linears: Mapping[str, tuple[int, int]]  # of one block, by name
    other: int  # parameters of a block that stand in no linear weight (norms, biases), and those of the last norm
    max_length: int | None = None

    @property
    def query(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads together; values are as wide."""
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks: what quantisation shrinks and products go through."""
        return self.layers * sum(n_in * n_out for n_in, n_out in self.linears.values())

    @property
    def head_parameters(self) -> int:
        """Weights of the output head."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of them; a tied head counts once."""
        return self.linear_parameters + self.head_parameters * (1 if self.tied else 2) + self.other


def shape_of_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape a `config.json` describes.

    Raises:
        InvalidInput: it describes no causal language model that can be planned.
    """
    kind = config.get("model_type")
    if kind not in _LLAMA_LIKE:
        from tuneloop.train.plan.meta import shape_by_building  # noqa: PLC0415 (torch, for unusual models only)

        return shape_by_building(config, name)
    try:
        hidden, heads, layers = (
            int(config[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
        )
        intermediate, vocab = int(config["intermediate_size"]), int(config["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{name}: config.json does not say {error}; it describes no model that can be planned"
        ) from None
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    biased = tuple(_BIASED.get(str(kind), ()))
    if config.get("attention_bias"):
        biased = ("q_proj", "k_proj", "v_proj", "o_proj")
    linears = _llama_linears(hidden, heads * head_dim, kv_heads * head_dim, intermediate)
    norms = 2 * hidden + (2 * head_dim if kind in _NORMED_HEADS else 0)
    other = layers * (norms + sum(linears[key][1] for key in biased)) + hidden
    tied = bool(config.get("tie_word_embeddings", False))
    longest = config.get("max_position_embeddings")
    return ModelShape(
        name, layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, tied, linears, other, longest
    )


def _llama_linears(hidden: int, query: int, key_value: int, intermediate: int) -> dict[str, tuple[int, int]]:
    return {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, intermediate),
        "up_proj": (hidden, intermediate),
        "down_proj": (intermediate, hidden),
    }


def shape_of_gguf(path: Path) -> tuple[ModelShape, str]:
    """The shape in a GGUF file's header, and its model type; weights are not read.

    Raises:
        InvalidInput: the file cannot be read, or is of an architecture whose blocks are not Llama's.
    """
    from gguf import GGUFReader  # noqa: PLC0415 (numpy and a second; only for such bases)

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} is no GGUF file: {error}") from None
    fields = reader.fields
    architecture = str(fields["general.architecture"].contents())
    if architecture not in _LLAMA_LIKE:
        raise InvalidInput(f"{path}: plans know GGUF files of {', '.join(sorted(_LLAMA_LIKE))}, not {architecture}")

    def number(key: str) -> int | None:
        field = fields.get(f"{architecture}.{key}")
        return int(field.contents()) if field is not None else None

    tensors = {tensor.name for tensor in reader.tensors}
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    config = {
        "model_type": architecture,
        "hidden_size": number("embedding_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "head_dim": number("attention.key_length"),
        "intermediate_size": number("feed_forward_length"),
        "vocab_size": int(embedding.shape[-1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "max_position_embeddings": number("context_length"),
    }
    return shape_of_config(config, path.stem), architecture


@dataclass(frozen=True)
class PlannedBase:
    """A base's shape, and its folder where that is on this machine (then its tokenizer is, too)."""

    shape: ModelShape
    folder: Path | None
    source: str
    architecture: str | None  # as its config says, by which an engine knows how to serve it


def planned_base(source: str, bases_root: Path, *, relative_to: Path) -> PlannedBase:
    """Find a base's shape with as little as possible: a folder, what was made before, a GGUF header, the hub's config.

    Raises:
        InvalidInput: the source leads nowhere, or to no model that can be planned.
        Unavailable: the hub does not answer.
    """
    path = relative_to / Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    gguf = find_gguf(source, path)
    if (made := made_before(source, bases_root, gguf)) is not None:
        return _in_folder(made)
    if gguf is not None:
        shape, kind = shape_of_gguf(gguf)
        return PlannedBase(shape, None, f"the header of {gguf.name}", _LLAMA_LIKE[kind])
    config = _hub_config(source)
    told = f"config.json of {source} on the hub"
    return PlannedBase(shape_of_config(config, source), None, told, architecture_of(config))


def _in_folder(folder: Path) -> PlannedBase:
    config = folder / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{config} cannot be read: {error}; a base is a folder with config.json") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{config} holds no JSON object")
    return PlannedBase(shape_of_config(values, folder.name), folder, f"{config}", architecture_of(values))


def _hub_config(hub_id: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 (only when a hub id is used)
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        with asking_the_hub(hub_id):
            path = hf_hub_download(hub_id, "config.json")
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except HFValidationError as error:
        raise InvalidInput(
            f"base.model {hub_id!r}: {error}; give a folder, a .gguf file, a hub id, or package:NAME"
        ) from None
