"""Whether a folder is a whole model, as `save_pretrained` writes it: found out before it is registered.

Whoever loads it believes its index: a shard named `../x` would be read from elsewhere, one that is not named not at
all. Reads headers and JSON only, no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.versions.adapters import CONFIG as ADAPTER_CONFIG
from tuneloop.registry.versions.adapters import Shape, base_shapes, header_shapes
from tuneloop.registry.versions.artifacts import tokenizer_digest
from tuneloop.registry.versions.bounded import entries, object_in, quoted, shown, some

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")  # a name in this folder, and nothing else
_LAYER = re.compile(r"\.layers\.([0-9]+)\.")
_MOST_DIGITS = 6  # of a layer's number
_AGAIN = "save the model again"
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
# What, in the base's configuration, makes the same tensors compute something else.
_MEANING = (
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
)


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a model of its own, not an adapter of one."""
    return (folder / CONFIG).is_file() and not (folder / ADAPTER_CONFIG).is_file()


def unloadable(folder: Path, base: Path | None) -> list[str]:
    """What speaks against a whole model; empty when nothing does.

    Args:
        folder: its files.
        base: that of the model it was trained from; None: nobody said.
    """
    try:
        config = object_in(folder / CONFIG, _AGAIN)
        shapes = _shapes(folder)
        own_tokenizer = tokenizer_digest(folder)
    except InvalidInput as error:
        return [str(error)]
    found = [*_config_reasons(folder, config), *_layout_reasons(config, shapes)]
    if own_tokenizer is None:
        found.append("it has no tokenizer (tokenizer.json, *.model or vocab.json); save it beside the weights")
    if base is not None:
        found += _base_reasons(config, shapes, base)
        if own_tokenizer is not None and own_tokenizer != tokenizer_digest(base):
            found.append(
                f"its tokenizer is not that of {base.name}: the same words would be other tokens; give the base it was "
                "trained from, or leave --base out if it has a tokenizer of its own"
            )
    return found


def _shapes(folder: Path) -> dict[str, Shape]:
    """Tensor name → shape over all shards.

    Raises:
        InvalidInput: the shards are not those that the index names, no more and no fewer, each with its tensors.
    """
    there = {path.relative_to(folder).as_posix() for path in entries(folder) if path.suffix == ".safetensors"}
    if not (folder / INDEX).is_file():
        if there != {WEIGHTS}:
            raise InvalidInput(
                f"without {INDEX} only {WEIGHTS} is loaded, and there is {some(there)}; save it with save_pretrained"
            )
        return header_shapes(folder / WEIGHTS)
    named = object_in(folder / INDEX, _AGAIN).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(shard, str) for shard in named.values()):
        raise InvalidInput(f"{INDEX}: weight_map does not name a file for each tensor; save it with save_pretrained")
    shards = set(named.values())
    if strange := [shard for shard in shards if not _SHARD.fullmatch(shard)]:
        raise InvalidInput(f"{INDEX}: {some(map(repr, strange))} is no name of a file in this folder; do not load it")
    if missing := shards - there:
        raise InvalidInput(f"{INDEX} names {some(missing)}, which is not there; bring all shards")
    if extra := there - shards:
        raise InvalidInput(f"{some(extra)}: {INDEX} does not name it, so nothing would load it; remove it")
    held = {shard: header_shapes(folder / shard) for shard in sorted(shards)}
    if lost := [name for name, shard in named.items() if name not in held[shard]]:
        raise InvalidInput(f"{INDEX}: {some(lost)} is not in the shard it names; save the model again")
    if hidden := [name for shard, shapes in held.items() for name in shapes if named.get(name) != shard]:
        raise InvalidInput(f"{INDEX} does not say that {some(hidden)} is where it is; save the model again")
    return {name: shape for shapes in held.values() for name, shape in shapes.items()}


def _config_reasons(folder: Path, config: Mapping[str, Any]) -> list[str]:
    found = []
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not all(isinstance(a, str) for a in architectures):
        found.append(f"{CONFIG}: architectures is {quoted(architectures)}, not what kind of model it is")
    if not isinstance(config.get("model_type"), str):
        found.append(f"{CONFIG}: model_type is {quoted(config.get('model_type'))}, not what kind of model it is")
    for name in (CONFIG, "tokenizer_config.json"):
        if (folder / name).is_file():
            try:
                own_code = object_in(folder / name, _AGAIN).get("auto_map")
            except InvalidInput as error:
                found.append(str(error))
                continue
            if own_code:
                found.append(f"{name}: auto_map asks for code that comes with the model, which is never run")
    if config.get("quantization_config"):
        found.append(
            f"{CONFIG}: it is quantised (quantization_config); register the weights from before, and quantise the "
            "version with `tuneloop export`"
        )
    return found


def _layout_reasons(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
    """Where the configuration and the tensors contradict each other."""
    if not shapes:
        return ["it holds no tensors; save the model again"]
    found = []
    numbers = {match[1]: name for name in shapes if (match := _LAYER.search(name))}
    if beyond := [name for number, name in numbers.items() if len(number) > _MOST_DIGITS]:
        return [f"{some(beyond)}: no model has a layer of that number; {_AGAIN}"]
    layers = {int(number) for number in numbers}
    told = config.get("num_hidden_layers")
    if layers and type(told) is int and (len(layers) != told or max(layers) != told - 1):
        found.append(
            f"{CONFIG} speaks of {quoted(told)} layers, the weights have {len(layers)} (the last is {max(layers)})"
        )
    for name, shape in shapes.items():
        if not name.endswith((_EMBEDDING, _HEAD)) or len(shape) != 2:
            continue
        wanted = (config.get("vocab_size"), config.get("hidden_size"))
        if all(type(size) is int for size in wanted) and shape != wanted:
            vocabulary, width = map(quoted, wanted)
            found.append(
                f"{shown(name)} is {list(shape)}, and {CONFIG} says vocab_size {vocabulary}, hidden_size {width}"
            )
    return found


def _base_reasons(config: Mapping[str, Any], shapes: Mapping[str, Shape], base: Path) -> list[str]:
    """What is other than in the model it is said to have been trained from."""
    theirs, their_shapes = object_in(base / CONFIG, _AGAIN), base_shapes(base)
    found = [
        f"{CONFIG}: {key} is {quoted(config[key])}, that of {base.name} is {quoted(theirs[key])}"
        for key in _MEANING
        if key in config and key in theirs and config[key] != theirs[key]
    ]
    other = {name for name in {*shapes, *their_shapes} if shapes.get(name) != their_shapes.get(name)}
    if config.get("tie_word_embeddings"):
        other = {name for name in other if not name.endswith(_HEAD)}  # saved or not, it is the embedding
    if other:
        tell = (f"{name} ({_size(shapes.get(name))}, there {_size(their_shapes.get(name))})" for name in other)
        found.append(f"its tensors are not those of {base.name}: {some(tell)}")
    return found and [*found, "give the base it was trained from, or leave --base out"]


def _size(shape: Shape | None) -> str:
    return "missing" if shape is None else quoted(list(shape))
