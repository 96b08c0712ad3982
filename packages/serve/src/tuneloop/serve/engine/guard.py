"""Our guards against two defects of vLLM on CPUs, handed to vLLM through its own plugin mechanism.

vLLM 0.32 marks a token without adapter by slot -1, and its PyTorch kernels then index the last slot: a base request
batched with adapter requests gets whatever adapter lies there. `--max-loras` above the number of loaded adapters keeps
that slot empty only at first: unloading does not free a slot, so after as many loads as there are slots the last one is
filled for good. Those kernels also copy an adapter's weights once for every token. The plugin replaces the product that
they serve: tokens are grouped by slot once a step, slot -1 adds nothing, and each group is multiplied with weights that
lie where they are (in bfloat16 the first of the two factors is widened, as vLLM does it). A token is rounded alike
whoever shares its batch: else what a version answers would hang on who else asks, by as much as a training step. GPU
kernels do both by themselves and get no plugin.

vLLM's scheduler waits for its worker in a loop that gives its core away by `sched_yield` alone. Where cores are few,
whoever takes in new requests does not get that core: measured on two, a request that came while three streams ran
waited up to 24 s for its first token, until they had ended. The plugin lets each turn of the loop sleep; then it waits
0.3 s, and the streams take as long as before. What both are worth together, benchmarks/engine.py measures.
"""

from __future__ import annotations

from pathlib import Path

from tuneloop.registry.files import OWNER_ONLY, write_atomically

GUARD = "tuneloop_engine_guard"
_CODE = '''"""Written by tuneloop's engine agent: tokens without adapter get none, no weights are copied per token, and
whoever waits for the worker lets others have the core.

Shapes: x (tokens or more, in), y (tokens or more, outs of all slices), down (slots, 1, rank, in), up (slots, 1, out,
rank).
"""


def install():
    import time

    import torch
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    if getattr(PunicaWrapperCPU.add_lora_linear, "tuneloop_guard", False):
        return

    shm_broadcast.sched_yield = lambda: time.sleep(0.0002)
    theirs = PunicaWrapperCPU.update_metadata

    def update_metadata(self, *arguments, **named):
        theirs(self, *arguments, **named)
        tokens = self.token_lora_indices
        slots = [slot for slot in torch.unique(tokens).tolist() if slot >= 0]
        alone = len(slots) == 1 and bool((tokens == slots[0]).all())
        self.groups = [(slot, None if alone else (tokens == slot).nonzero().squeeze(1)) for slot in slots]

    def add_lora_linear(self, y, x, downs, ups, scale, output_slices, *, buffer=None, **named):
        length = min(x.shape[0], self.token_lora_indices.shape[0])  # what is padded is nobody's
        for slot, rows in self.groups:
            if rows is None:
                given, made = x[:length], y[:length]
            else:
                rows = rows[rows < length]
                given, made = x[rows], y[rows]  # added to what is there, so that it is rounded as when it is alone
            begin = 0
            for down, up, width in zip(downs, ups, output_slices, strict=True):
                down, up = down[slot].flatten(0, -2), up[slot].flatten(0, -2)
                low = torch.mm(given.float(), down.float().t())
                made[:, begin : begin + width].addmm_(low.to(y.dtype), up.t(), alpha=scale)
                begin += width
            if rows is not None:
                y.index_copy_(0, rows, made)

    add_lora_linear.tuneloop_guard = True
    PunicaWrapperCPU.update_metadata, PunicaWrapperCPU.add_lora_linear = update_metadata, add_lora_linear
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
