"""Our guard against vLLM's CPU LoRA defect, handed to vLLM through its own plugin mechanism.

vLLM 0.32 marks a token without adapter by slot -1, and its PyTorch kernels then index the last slot: a base request
batched with adapter requests gets whatever adapter lies there. `--max-loras` above the number of loaded adapters keeps
that slot empty only at first: unloading does not free a slot, so after as many loads as there are slots the last one is
filled for good. The plugin zeroes those rows. GPU kernels skip them by themselves and get no plugin.
"""

from __future__ import annotations

from pathlib import Path

from tuneloop.serve.files import write_atomically

GUARD = "tuneloop_engine_guard"
_CODE = '''"""Written by tuneloop's engine agent: tokens without adapter get none, whatever lies in the last slot."""


def install():
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    shrink = lora_ops.bgmv_shrink
    if getattr(shrink, "tuneloop_guard", False):
        return

    def guarded(inputs, weights, output, indices, scaling=1.0):
        shrink(inputs, weights, output, indices, scaling)
        output[: indices.shape[0]].masked_fill_((indices < 0).unsqueeze(1), 0.0)

    guarded.tuneloop_guard = True
    lora_ops.bgmv_shrink = guarded
    punica_cpu.bgmv_shrink = guarded
'''
_METADATA = f"Metadata-Version: 2.1\nName: {GUARD.replace('_', '-')}\nVersion: 1\n"
_ENTRY_POINTS = f"[vllm.general_plugins]\n{GUARD} = {GUARD}:install\n"


def install(home: Path) -> Path:
    """Write the plugin below the engine's folder; the folder that has to stand on vLLM's PYTHONPATH."""
    folder = home / "plugins"
    about = folder / f"{GUARD}-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{GUARD}.py", _CODE.encode())
    write_atomically(about / "METADATA", _METADATA.encode())
    write_atomically(about / "entry_points.txt", _ENTRY_POINTS.encode())
    return folder
