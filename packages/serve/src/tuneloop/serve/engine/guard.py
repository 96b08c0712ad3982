"""Our guards against two defects of vLLM on CPUs, handed to vLLM through its own plugin mechanism.

vLLM 0.32 marks a token without adapter by slot -1, and its PyTorch kernels then index the last slot: a base request
batched with adapter requests gets whatever adapter lies there. `--max-loras` above the number of loaded adapters keeps
that slot empty only at first: unloading does not free a slot, so after as many loads as there are slots the last one is
filled for good. Those kernels also copy an adapter's weights once for every token. The plugin replaces them: tokens are
grouped by slot, slot -1 adds nothing, and each group is one product with weights that lie where they are. GPU kernels
do both by themselves and get no plugin.

vLLM's scheduler waits for its worker in a loop that gives its core away by `sched_yield` alone. Where cores are few,
whoever takes in new requests does not get that core: measured on two, a request that came while three streams ran
waited up to 24 s for its first token, until they had ended. The plugin lets each turn of the loop sleep; then it waits
0.3 s, and the streams take as long as before.
"""

from __future__ import annotations

from pathlib import Path

from tuneloop.registry.files import OWNER_ONLY, write_atomically

GUARD = "tuneloop_engine_guard"
_CODE = '''"""Written by tuneloop's engine agent: tokens without adapter get none, no weights are copied per token, and
whoever waits for the worker lets others have the core.

Shapes: inputs (tokens, in), weights (slots, out, in) or (slots, 1, out, in), output (tokens or more, out or more).
"""


def install():
    import time

    import torch
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if getattr(lora_ops.bgmv_shrink, "tuneloop_guard", False):
        return

    shm_broadcast.sched_yield = lambda: time.sleep(0.0002)

    def products(inputs, weights, output, indices):
        """(rows, their product with their slot's weights) for every slot in use."""
        indices = indices[: inputs.shape[0]]
        for slot in torch.unique(indices).tolist():
            if slot < 0:
                continue
            matrix = weights[slot].to(output.dtype)
            if matrix.dim() == 3:
                matrix = matrix.squeeze(0)
            rows = (indices == slot).nonzero().squeeze(1)
            yield rows, torch.nn.functional.linear(inputs[rows].to(output.dtype), matrix)

    def shrink(inputs, weights, output, indices, scaling=1.0):
        output[: inputs.shape[0], : weights.shape[-2]] = 0.0
        for rows, product in products(inputs, weights, output, indices):
            output[rows, : product.shape[1]] = scaling * product

    def expand_slice(inputs, weights, output, indices, slice_offset, slice_size, add_inputs=True):
        if not add_inputs:
            output[: inputs.shape[0], slice_offset : slice_offset + slice_size] = 0.0
        for rows, product in products(inputs, weights, output, indices):
            output[rows, slice_offset : slice_offset + slice_size] += product

    def expand(inputs, weights, output, indices, add_inputs=True):
        width = min(weights.shape[-2], output.shape[1])  # adapter and model may pad their output differently
        expand_slice(inputs, weights[..., :width, :], output, indices, 0, width, add_inputs)

    shrink.tuneloop_guard = True
    for module in (lora_ops, punica_cpu):
        module.bgmv_shrink, module.bgmv_expand, module.bgmv_expand_slice = shrink, expand, expand_slice
'''
_METADATA = f"Metadata-Version: 2.1\nName: {GUARD.replace('_', '-')}\nVersion: 1\n"
_ENTRY_POINTS = f"[vllm.general_plugins]\n{GUARD} = {GUARD}:install\n"


def install(home: Path) -> Path:
    """Write the plugin below the engine's folder; the folder that has to stand on vLLM's PYTHONPATH."""
    folder = home / "plugins"
    about = folder / f"{GUARD}-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{GUARD}.py", _CODE.encode(), mode=OWNER_ONLY)
    write_atomically(about / "METADATA", _METADATA.encode(), mode=OWNER_ONLY)
    write_atomically(about / "entry_points.txt", _ENTRY_POINTS.encode(), mode=OWNER_ONLY)
    return folder
