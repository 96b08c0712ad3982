"""The kernels that the guard puts in vLLM's place, run in vLLM's own environment and held against plain loops."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tuneloop.serve.engine.guard import GUARD, install

ENGINE_PYTHON = Path(__file__).parents[3] / ".venv-engine" / "bin" / "python"
PROGRAM = f"""
import sys

import torch
from {GUARD} import install
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

theirs = PunicaWrapperCPU.add_lora_linear
install()
install()  # once more changes nothing
torch.manual_seed(0)
torch.set_default_dtype(getattr(torch, sys.argv[1]))
NEAR = dict(rtol=1e-5, atol=1e-5) if sys.argv[1] == "float32" else dict(rtol=0.03, atol=0.3)  # sums of 8 × 32 products
SLOTS, RANK, IN, SLICES, SCALE, PADDING = 4, 8, 32, (48, 16), 0.5, 2
downs = tuple(torch.randn(SLOTS, 1, RANK, IN) for _ in SLICES)
ups = tuple(torch.randn(SLOTS, 1, width, RANK) for width in SLICES)


def wrapper(slots):
    made = PunicaWrapperCPU(64, 8, "cpu")
    ids = tuple(slot + 1 for slot in slots)  # an adapter's id; 0 is none
    made.update_metadata(LoRAMapping(ids, ids, is_prefill=True), [1, 2, 3, 4], SLOTS, 100)
    return made


for slots in ([2, 2, 2, 2, 2], [0, 3, -1, 3, 1], [-1, -1, -1], [1], [1, 1, -1]):
    rows = len(slots) + PADDING
    x, y = torch.randn(rows, IN), torch.randn(rows, sum(SLICES))
    wanted = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            wanted[row] += SCALE * torch.cat([up[slot, 0] @ down[slot, 0] @ x[row] for down, up in zip(downs, ups)])
    mine, fewer = y.clone(), y[:1].clone()
    wrapper(slots).add_lora_linear(mine, x, downs, ups, SCALE, SLICES)
    torch.testing.assert_close(mine, wanted, **NEAR)
    assert (mine[len(slots):] == y[len(slots):]).all(), "padding is nobody's"
    wrapper(slots).add_lora_linear(fewer, x[:1], downs, ups, SCALE, SLICES)
    torch.testing.assert_close(fewer, wanted[:1], **NEAR)
    if -1 not in slots:  # there vLLM's own is right
        own = y[: len(slots)].clone()
        theirs(wrapper(slots), own, x[: len(slots)], downs, ups, SCALE, SLICES)
        torch.testing.assert_close(mine[: len(slots)], own, **NEAR)
# What a token gets does not hang on who shares its batch, to the last bit: else canaries would read otherwise then.
# All sums of these whole numbers are exact in float32, in any order; in bfloat16 they are rounded, and must be once.
whole = lambda *shape: torch.randint(-9, 10, shape).to(torch.get_default_dtype())
downs = tuple(whole(SLOTS, 1, RANK, IN) for _ in SLICES)
ups = tuple(whole(SLOTS, 1, width, RANK) for width in SLICES)
x, y = whole(6, IN), torch.randint(-64, 65, (6, sum(SLICES))).to(torch.get_default_dtype()) / 4
alone, mixed = y.clone(), y.clone()
wrapper([2] * 6).add_lora_linear(alone, x, downs, ups, SCALE, SLICES)
wrapper([2, 0, 2, -1, 2, 3]).add_lora_linear(mixed, x, downs, ups, SCALE, SLICES)
assert torch.equal(mixed[[0, 2, 4]], alone[[0, 2, 4]]), "one batch rounds otherwise than another"
wrong = torch.zeros(2, sum(SLICES))
theirs(wrapper([-1, 0]), wrong, torch.randn(2, IN), downs, ups, SCALE, SLICES)
assert (wrong[0] != 0).any(), "vLLM has mended its slot -1: that guard may go"
"""


@pytest.mark.engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_get_their_own_adapter_and_those_without_one_get_none(tmp_path: Path, dtype: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(ENGINE_PYTHON), "-c", PROGRAM, dtype],
        env=environment | {"PYTHONPATH": str(install(tmp_path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
