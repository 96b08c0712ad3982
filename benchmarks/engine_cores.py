"""vLLM on few CPU cores: its own binding, which keeps one core for its scheduler, against computing on all of them.

    python benchmarks/engine_cores.py --base .cache/bases/smollm2-135m-instruct --rounds 2

Each round starts both in turn and asks the same: answers of 24 tokens from eight users at once, one user alone, and
prompts of about 90 tokens to be scored (`prompt_logprobs`), two at a time. Writes
`benchmarks/results/engine_cores.json`; a minute and a half for each start on two idle cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from openai import AsyncOpenAI

from tuneloop.registry.printing import table
from tuneloop.serve.engine import guard
from tuneloop.serve.engine.launch import build
from tuneloop.serve.engine.precision import choose_precision, cpu_features
from tuneloop.serve.engine.settings import EngineSettings

RESULTS = Path(__file__).parent / "results" / "engine_cores.json"
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
KINDS = {"vLLM's binding": "auto", "all cores": "nobind"}
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


async def measure(url: str, model: str) -> dict[str, float]:
    """Requests per second of each kind of work."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:

        async def answer(number: int) -> object:
            return await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": f"What does function number {number} of textwrap do?"}],
                max_tokens=24,
                temperature=0,
                extra_body={"ignore_eos": True},
            )

        async def score(number: int) -> object:
            return await client.completions.create(
                model=model, prompt=f"{number} {PROMPT}", max_tokens=1, extra_body={"prompt_logprobs": 0}
            )

        await several(answer, 8, 8)  # warms it up
        return {
            "answers of 8 users": await several(answer, 48, 8),
            "answers of 1 user": await several(answer, 4, 1),
            "scored prompts": await several(score, 24, 2),
        }


def one(base: Path, python: Path, binding: str) -> dict[str, float]:
    """Start vLLM as our engine agent would, but for the binding, measure, and stop it."""
    settings = EngineSettings.load()
    settings = settings.model_copy(update={"dtype": choose_precision("auto", "cpu", cpu_features()).dtype})
    url = f"http://127.0.0.1:{settings.port}"
    with tempfile.TemporaryDirectory() as scratch:
        cores, plugins = len(os.sched_getaffinity(0)), guard.install(Path(scratch))
        environment = os.environ | {BINDING: binding}
        launch = build(
            settings, base=base, python=python, device="cpu", cores=cores, plugins=plugins, environment=environment
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
            return asyncio.run(measure(url, base.name))
        finally:
            os.killpg(engine.pid, signal.SIGTERM)
            engine.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path(".cache/bases/smollm2-135m-instruct"))
    parser.add_argument("--python", type=Path, default=Path(".venv-engine/bin/python"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    base, python = given.base.resolve(), given.python.absolute()  # resolving the latter would leave its environment
    rounds = [{kind: one(base, python, binding) for kind, binding in KINDS.items()} for _ in range(given.rounds)]
    before, after = KINDS
    rows, ratios = [], {}
    for work in rounds[0][before]:
        medians = [statistics.median(each[kind][work] for each in rounds) for kind in (before, after)]
        ratios[work] = statistics.median(each[after][work] / each[before][work] for each in rounds)
        rows.append([work, *(f"{found:.2f}" for found in medians), f"{ratios[work]:.2f}"])
    print(table(("PER SECOND", *KINDS, "RATIO"), rows))
    found = {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "base": base.name,
        "rounds": rounds,
        "ratios": ratios,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
