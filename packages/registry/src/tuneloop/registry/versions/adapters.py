"""Whether a folder is an adapter that an engine can serve, found out before it is registered and before vLLM sees it.

vLLM loads some bad adapters with status 200 and serves the bare base under their name; others end a request with status
500. Reads headers only, no weights: about 1 ms an adapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import EngineState, Version
from tuneloop.registry.versions.artifacts import PUBLISHABLE
from tuneloop.registry.versions.bounded import entries, object_in, quoted, shown, some

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SERVED_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LARGEST_RANK = 512  # that vLLM can be started for
_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
_MAX_ALPHA = 1e6  # of any adapter that was ever trained; NaN is not below it
_MAX_HEADER_BYTES = 100_000_000
_MOST_DIMENSIONS, _LARGEST_DIMENSION = 8, 2**63  # a product of more, or of larger ones, takes seconds
_AS_WRITTEN = "publish the folder that PEFT's save_pretrained wrote"
_TENSOR = re.compile(r"^base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight$")
# Features that change what an adapter means and that vLLM does not have; each with what it asks of the trainer.
_UNSERVED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "lora_bias": "biases",
    "fan_in_fan_out": "transposed weights",
    "layer_replication": "layer_replication",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "target_parameters": "target_parameters",
    "trainable_token_indices": "trained token embeddings",
}
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Base:
    """The base model an engine serves, known by content."""

    name: str
    digest: str
    template_digest: str


@dataclass(frozen=True)
class Limits:
    """What the engine can serve."""

    base: Base
    max_lora_rank: int
    base_shapes: Mapping[str, Shape]  # tensor name → shape, from the base's own headers
    modules: tuple[str, ...] = SERVED_MODULES


def highest_rank(engines: Iterable[EngineState], base_digest: str) -> int | None:
    """The highest rank that one of the engines serves on this base; None where none of them has it."""
    return max((engine.max_lora_rank for engine in engines if engine.base_digest == base_digest), default=None)


def check(folder: Path, version: Version, limits: Limits) -> None:
    """Refuse an adapter that this engine cannot serve as it was trained.

    Raises:
        InvalidInput: names everything that is wrong and what to do about it.
    """
    if found := reasons(folder, version, limits):
        raise InvalidInput(f"{version.name} cannot be served here: {'; '.join(found)}")


def reasons(folder: Path, version: Version, limits: Limits) -> list[str]:
    """Everything that speaks against serving the adapter; empty when nothing does."""
    return wrong_base(version, limits.base) + unservable(folder, limits)


def unservable(folder: Path, limits: Limits) -> list[str]:
    """What is wrong with the files alone; empty when nothing is."""
    found = []
    try:
        foreign = [path.name for path in entries(folder) if path.is_file() and path.suffix not in PUBLISHABLE]
        if foreign:
            found.append(
                f"{some(foreign)}: only safetensors and text are loaded, never pickles; save it as safetensors"
            )
        config = object_in(folder / CONFIG, _AS_WRITTEN)
        found += _config_reasons(config, limits)
        shapes = header_shapes(folder / WEIGHTS)
    except InvalidInput as error:
        return [*found, str(error)]
    return found + _tensor_reasons(shapes, limits, _ranks(config))


def wrong_base(version: Version, base: Base) -> list[str]:
    """Why a version does not belong on an engine with this base; empty when it does."""
    if version.kind != "adapter":
        return [f"it is whole weights; they have an engine of their own: `tuneloop engine --version {version.name}`"]
    if version.base_digest != base.digest:
        return [
            f"it was trained on base {version.base} ({version.base_digest[:19]}…) and this engine serves "
            f"{base.digest[:19]}…; start an engine with that base"
        ]
    if version.template_digest != base.template_digest:
        return [
            f"it was trained with chat template {version.template_digest[:19]}… and this engine's base has "
            f"{base.template_digest[:19]}…: it would be asked in a form it never saw; bring that template back"
        ]
    return []


def header_shapes(path: Path) -> dict[str, Shape]:
    """Tensor name → shape of a safetensors file, from its header alone.

    Raises:
        InvalidInput: the file is missing, cut short, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise InvalidInput(f"{path.name} is cut short or no safetensors file ({size} bytes); publish it again")
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 0
        for first, last in sorted(entry["data_offsets"] for entry in tensors.values()):
            if {type(first), type(last)} != {int} or first != end or not first <= last <= size:
                raise InvalidInput(
                    f"{path.name}: its tensors overlap, leave gaps or pass its end at byte {quoted(first)}; publish it "
                    "again"
                )
            end = last
        if 8 + length + end != size:
            raise InvalidInput(
                f"{path.name} is cut short: {size} bytes, its header speaks of {8 + length + end}; publish it again"
            )
        for name, entry in tensors.items():
            first, last = entry["data_offsets"]
            shape, called = entry["shape"], f"{path.name}: tensor {shown(name)}"
            known = isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS
            if not known or not all(type(each) is int and 0 <= each < _LARGEST_DIMENSION for each in shape):
                raise InvalidInput(f"{called} has the shape {quoted(shape)}; publish it again")
            if last - first != prod(shape) * _BYTES[entry["dtype"]]:
                raise InvalidInput(f"{called} does not fill its shape {quoted(shape)}; publish it again")
        return {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except OSError as error:
        raise InvalidInput(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{path.name} has a broken header ({shown(error)}); publish it again") from None


def base_shapes(base: Path) -> dict[str, Shape]:
    """Tensor name → shape of a base model, over all its safetensors files."""
    return {name: shape for path in sorted(base.glob("*.safetensors")) for name, shape in header_shapes(path).items()}


def _config_reasons(config: Mapping[str, Any], limits: Limits) -> list[str]:
    found = []
    if (kind := config.get("peft_type")) != "LORA":
        found.append(
            f"{CONFIG}: peft_type is {shown(kind)}; only LORA is served as an adapter, merge it into a base instead"
        )
    found += _scale_reasons(config, limits)
    for key, what in _UNSERVED.items():
        if config.get(key):
            found.append(f"{CONFIG}: {what} ({key}) is not served by vLLM; train without it")
    if config.get("bias", "none") != "none":
        found.append(f"{CONFIG}: bias {quoted(config['bias'])} is not served by vLLM; train with bias none")
    if str(config.get("init_lora_weights")).lower().startswith(_BASE_CHANGING_INITS):
        found.append(
            f"{CONFIG}: init_lora_weights {quoted(config['init_lora_weights'])} changed the base; convert it with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        found.append(
            f"{CONFIG}: target_modules is {quoted(targets)}, not a list of module names; save it with a recent PEFT"
        )
    else:
        found += _target_reasons((str(target).rpartition(".")[2] for target in targets), limits)
    return found


def _scale_reasons(config: Mapping[str, Any], limits: Limits) -> list[str]:
    """What is wrong with its ranks, and with the numbers that say how strongly it acts."""
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            return [f"{CONFIG}: {key} is {quoted(config[key])}, not a mapping; save it with PEFT's save_pretrained"]
    found = []
    ranks = _ranks(config)
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        found.append(f"{CONFIG}: r is {quoted(config.get('r'))}, not a positive number")
    elif max(ranks) > LARGEST_RANK:
        found.append(
            f"{CONFIG}: rank {quoted(max(ranks))} is above {LARGEST_RANK}, the most that vLLM serves; lower lora.rank"
        )
    elif max(ranks) > limits.max_lora_rank:
        found.append(
            f"{CONFIG}: rank {max(ranks)} exceeds the engine's max_lora_rank {limits.max_lora_rank}; lower lora.rank, "
            f"or start the engine with --max-lora-rank {max(ranks)}"
        )
    alphas = [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]
    if not all(type(alpha) in {int, float} and 0 < alpha <= _MAX_ALPHA for alpha in alphas):
        found.append(
            f"{CONFIG}: lora_alpha is {quoted(config.get('lora_alpha'))}, with the patterns no positive number each"
        )
    if type(config.get("use_rslora", False)) is not bool:
        found.append(f"{CONFIG}: use_rslora is {quoted(config['use_rslora'])}; it is true or false")
    return found


def _ranks(config: Mapping[str, Any]) -> list[Any]:
    pattern = config.get("rank_pattern")
    return [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]


def _target_reasons(modules: Iterable[str], limits: Limits) -> list[str]:
    strange = sorted(set(modules) - set(limits.modules))
    if not strange:
        return []
    return [
        f"{CONFIG}: target_modules {some(strange)} would be ignored in silence: the engine serves "
        f"{', '.join(limits.modules)}; train on those"
    ]


def _tensor_reasons(shapes: Mapping[str, Shape], limits: Limits, ranks: Collection[int]) -> list[str]:
    if not shapes:
        return [f"{WEIGHTS} holds no tensors; publish it again"]
    pairs: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        match = _TENSOR.match(name)
        if match is None or len(shape) != 2:
            return [
                f"{WEIGHTS}: {shown(name)} {list(shape)} is not the A or B of a LoRA; save it with PEFT's "
                "save_pretrained"
            ]
        pairs.setdefault(match["layer"], {})[match["side"]] = shape
    for layer, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            return [f"{WEIGHTS}: {shown(layer)}: has only its lora_{next(iter(pair))}; publish it again"]
        if wrong := _pair_reason(layer, pair, limits, ranks):
            return [f"{WEIGHTS}: {shown(layer)}: {wrong}"]
    return []


def _pair_reason(layer: str, pair: Mapping[str, Shape], limits: Limits, ranks: Collection[int]) -> str:
    """What is wrong with one layer's A [rank, in] and B [out, rank]; empty when nothing is."""
    (rank_a, features_in), (features_out, rank_b) = pair["A"], pair["B"]
    if rank_a != rank_b or rank_a > limits.max_lora_rank:
        return f"A is {list(pair['A'])} and B is {list(pair['B'])}: ranks differ or exceed {limits.max_lora_rank}"
    if rank_a not in ranks:
        return f"has rank {rank_a}, and {CONFIG} knows only {some(map(str, ranks))}; publish what was saved together"
    if layer.rpartition(".")[2] not in limits.modules:
        return f"is not among the served modules {', '.join(limits.modules)}; train on those"
    weight = limits.base_shapes.get(f"{layer}.weight")
    if weight is not None and weight != (features_out, features_in):
        return (
            f"adapts a weight {[features_out, features_in]}, the base's is {list(weight)}; it belongs to another base"
        )
    if weight is None and not any(name.startswith(f"{layer}.") for name in limits.base_shapes):
        return "the base has no such layer; it belongs to another base"
    return ""
