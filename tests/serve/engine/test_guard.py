"""The kernels that the guard puts in vLLM's place, run in vLLM's own environment and held against plain loops."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tuneloop.serve.engine.guard import GUARD, install

ENGINE_PYTHON = Path(__file__).parents[3] / ".venv-engine" / "bin" / "python"
PROGRAM = f"""
import torch
from {GUARD} import install
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

theirs = lora_ops.bgmv_shrink, lora_ops.bgmv_expand, lora_ops.bgmv_expand_slice
install()
install()  # once more changes nothing
torch.manual_seed(0)
SLOTS, RANK, IN, OUT = 4, 8, 32, 48
down, up = torch.randn(SLOTS, 1, RANK, IN), torch.randn(SLOTS, 1, OUT, RANK)
for indices in ([2, 2, 2, 2, 2], [0, 3, -1, 3, 1], [-1, -1, -1, -1, -1], [1]):
    slots = torch.tensor(indices)
    x, z, rows = torch.randn(len(slots), IN), torch.randn(len(slots), RANK), len(slots) + 2
    shrunk, expanded, sliced = torch.ones(rows, RANK), torch.ones(rows, OUT), torch.ones(rows, 2 * OUT)
    punica_cpu.bgmv_shrink(x, down, shrunk, slots, 0.5)
    punica_cpu.bgmv_expand(z, up, expanded, slots, True)
    padded, narrow, anew = torch.ones(rows, OUT + 8), torch.ones(rows, OUT - 8), torch.ones(rows, OUT)
    punica_cpu.bgmv_expand(z, up, padded, slots, True)
    punica_cpu.bgmv_expand(z, up, narrow, slots, True)
    punica_cpu.bgmv_expand(z, up, anew, slots, False)
    punica_cpu.bgmv_expand_slice(z, up, sliced, slots, OUT, OUT, True)
    for row, slot in enumerate(indices):
        low = 0.5 * down[slot, 0] @ x[row] if slot >= 0 else torch.zeros(RANK)
        high = up[slot, 0] @ z[row] if slot >= 0 else torch.zeros(OUT)
        torch.testing.assert_close(shrunk[row], low)
        torch.testing.assert_close(expanded[row], 1 + high)
        torch.testing.assert_close(padded[row], torch.cat([1 + high, torch.ones(8)]))
        torch.testing.assert_close(narrow[row], 1 + high[: OUT - 8])
        torch.testing.assert_close(anew[row], high)
        torch.testing.assert_close(sliced[row], torch.cat([torch.ones(OUT), 1 + high]))
    assert (shrunk[len(slots):] == 1).all() and (expanded[len(slots):] == 1).all(), "padding is nobody's"
    if -1 not in indices and len(indices) > 1:  # there vLLM's own are right
        for mine, own, weights, given in zip((shrunk, expanded), theirs, (down, up), (x, z)):
            out = torch.ones(len(slots), mine.shape[1])
            own(given, weights, out, slots, 0.5 if mine is shrunk else True)
            torch.testing.assert_close(mine[: len(slots)], out)
wrong = torch.zeros(1, RANK)
theirs[0](torch.randn(1, IN), down, wrong, torch.tensor([-1]), 1.0)
assert (wrong != 0).any(), "vLLM has mended its slot -1: the guard may go"
"""


@pytest.mark.engine
def test_tokens_get_their_own_adapter_and_those_without_one_get_none(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(ENGINE_PYTHON), "-c", PROGRAM],
        env=environment | {"PYTHONPATH": str(install(tmp_path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
