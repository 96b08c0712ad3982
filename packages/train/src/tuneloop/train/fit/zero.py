"""Sharding a run over processes: what DeepSpeed (ZeRO, Rajbhandari et al. 1910.02054) and FSDP are told.

ZeRO-2 shards gradients and optimizer state, ZeRO-3 and FSDP the weights too. DeepSpeed leaves small weights whole by
default; here none is, so that what is planned is what is held. FSDP on a CPU: `fsdp_on_cpu`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.recipe import RunSection

_STAGES = {"zero2": 2, "zero3": 3}


def check_launch(run: RunSection, device: str) -> None:
    """Refuse a launch that this machine cannot keep.

    Raises:
        InvalidInput: ZeRO without DeepSpeed, or FSDP that moves weights off a device where there is none.
    """
    strategy = run.launch.strategy
    if strategy in _STAGES and importlib.util.find_spec("deepspeed") is None:
        raise InvalidInput(f"run.launch.strategy {strategy} needs DeepSpeed: pip install deepspeed")
    if strategy == "fsdp" and run.launch.cpu_offload and device == "cpu":
        raise InvalidInput(
            "run.launch.cpu_offload with fsdp pins memory for a GPU, and there is none here; remove it: on a CPU "
            "everything is in main memory anyway"
        )


def sharding_arguments(run: RunSection, device: str) -> dict[str, Any]:
    """What transformers' TrainingArguments are told about several processes."""
    launch = run.launch
    found: dict[str, Any] = {"ddp_backend": "gloo" if device == "cpu" else "nccl"}
    if launch.is_plain:
        return {}
    if launch.strategy in _STAGES:
        return found | {"deepspeed": deepspeed_config(run, device)}
    if launch.strategy == "fsdp":
        offload = " offload" if launch.cpu_offload else ""
        return found | {"fsdp": f"full_shard auto_wrap{offload}", "fsdp_config": {"fsdp_version": 2}}
    return found | {"ddp_find_unused_parameters": False}


def join_deepspeed(device: str) -> None:
    """Make this process one of those that DeepSpeed shards over; on a CPU it compiles nothing for that.

    Left alone it builds a shared-memory reduction there at the first run, which needs a compiler and most of a
    minute, and which only its inference calls: training reduces through gloo either way.
    """
    import deepspeed  # noqa: PLC0415 (only where it shards)

    if device == "cpu":
        vars(deepspeed.ops)["__compatible_ops__"] = {}  # DeepSpeed probes on first access, and then asks this
    deepspeed.init_distributed(dist_backend="gloo" if device == "cpu" else "nccl")


def deepspeed_config(run: RunSection, device: str) -> dict[str, Any]:
    """DeepSpeed's configuration; `auto` is filled in by transformers from its own arguments."""
    stage = _STAGES[run.launch.strategy]
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    if run.launch.cpu_offload:
        memory = {"device": "cpu", "pin_memory": device != "cpu"}
        zero["offload_optimizer"] = memory
        if stage == 3:
            zero["offload_param"] = memory
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # transformers makes the optimizer
        "zero_force_ds_cpu_optimizer": False,
    }


def held_share(model: Any, optimizer: Any) -> tuple[int, int] | None:
    """How many of the trained parameters' optimizer entries this process holds, and of how many; None unsharded."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO-3
        held = sum(part.numel() for part in optimizer.fp32_partitioned_groups_flat)
        return held, sum(int(weight.ds_numel) for weight in trained)
    if hasattr(optimizer, "single_partition_of_fp32_groups"):  # ZeRO-2
        held = sum(part.numel() for part in optimizer.single_partition_of_fp32_groups)
        return held, sum(int(weight.numel()) for weight in trained)
    if any(hasattr(weight, "to_local") for weight in trained):  # FSDP: the optimizer's entries follow the weights
        held = sum((weight.to_local() if hasattr(weight, "to_local") else weight).numel() for weight in trained)
        return held, sum(int(weight.numel()) for weight in trained)
    return None
