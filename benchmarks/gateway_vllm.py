"""What the gateway costs in front of a real vLLM: throughput and latencies through it, against vLLM alone.

    python benchmarks/gateway_vllm.py                      # both parts, about eight minutes
    python benchmarks/gateway_vllm.py --parts throughput   # one; the other in the JSON file stays
    python benchmarks/gateway_vllm.py --quick              # two rounds, to see that it runs

SmolLM2-135M behind `tuneloop engine`; sixteen users at once, each asking when it has its last answer, streamed, of 16
to 32 tokens. In each round every system gets the same work, in an order that turns, and no two questions are alike, so
that no cache helps whoever comes second. `× ...` is the ratio of tokens/s over all rounds, with its 95 % bootstrap
interval over rounds. `throughput`: one adapter of rank 8 on q and v, asked directly, through the gateway as it comes
(texts redacted and recorded), and through one that records no texts. `mixed`: four adapters of rank 16 on all linear
layers, of one model each, in turn, directly and through the gateway, against the base alone.

vLLM computes on the same cores as gateway and client: what those take, it lacks. On a machine with a GPU it would not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import ROOT
from through_vllm.asking import Answer, Asked, Target, quantiles_ms, session, together
from through_vllm.house import Gateway, House, Others, machine
from tuneloop.registry.printing import table
from tuneloop.registry.versions.adapters import SERVED_MODULES
from tuneloop.train.evaluation.statistics import bootstrap

RESULTS = ROOT / "benchmarks" / "results" / "gateway_vllm.json"
USERS, REQUESTS, WARMING = 16, 32, 16
LEAST_ROUNDS, MEASURE_S = 2, 150.0
# The fewer modules an adapter is on, the faster the engine, and the more a gateway has to keep up with.
SHAPE: dict[str, tuple[int, tuple[str, ...]]] = {
    "throughput": (8, ("q_proj", "v_proj")),
    "mixed": (16, tuple(SERVED_MODULES)),
}
ADAPTERS = 4
TARGET = 0.98
LENGTHS = [random.Random(0).randint(16, 32) for _ in range(REQUESTS)]
DIRECT, OURS, TEXTLESS = "direct", "gateway", "gateway, no texts"
BASE, MIXED, MIXED_OURS = "base, direct", "4 adapters, direct", "4 adapters, gateway"
REFERENCE = {OURS: DIRECT, TEXTLESS: DIRECT, MIXED: BASE, MIXED_OURS: MIXED}


@dataclass
class System:
    """One way to have the work done, and what was seen of it."""

    targets: Sequence[Target]  # asked in turn
    gateway: Gateway | None = None
    seconds: list[float] = field(default_factory=list)  # of each round
    cpu_s: float = 0.0  # of the gateway, while it was the one asked
    answers: list[Answer] = field(default_factory=list)


async def measure(
    systems: Mapping[str, System], seconds: float, lengths: Sequence[int], warming: Sequence[int]
) -> None:
    """Warm each, then round after round of answers of these lengths until the time is over."""
    number = iter(range(10_000, 100_000))  # always five digits: a question has as many tokens as any other

    def work(system: System, lengths: Sequence[int]) -> list[tuple[Target, Asked]]:
        targets = cycle(system.targets)
        return [
            (next(targets), Asked(f"Question {next(number)}: what does textwrap.dedent do, and when?", length))
            for length in lengths
        ]

    async with session() as opened:
        for system in systems.values():
            await together(opened, work(system, warming), USERS)
        over = time.monotonic() + seconds
        for turn in count():
            if turn >= LEAST_ROUNDS and time.monotonic() > over:
                return
            names = list(systems)
            ahead = turn % len(names)
            for name in [*names[ahead:], *names[:ahead]][:: 1 if turn // len(names) % 2 else -1]:
                system = systems[name]
                before = system.gateway.cpu_s() if system.gateway else 0.0
                took, answers = await together(opened, work(system, lengths), USERS)
                system.cpu_s += system.gateway.cpu_s() - before if system.gateway else 0.0
                system.seconds.append(took)
                system.answers += answers
                print(f"round {turn + 1}, {name}: {took:.1f} s", flush=True)


def row_of(name: str, systems: Mapping[str, System]) -> dict[str, Any]:
    """What was seen of one system."""
    system = systems[name]
    seconds = sum(system.seconds)
    ttft = quantiles_ms(answer.ttft_s for answer in system.answers)
    itl = quantiles_ms(b - a for answer in system.answers for a, b in answer.gaps())
    row = {
        "system": name,
        "tokens_per_s": round(sum(answer.tokens for answer in system.answers) / seconds, 2),
        "requests_per_s": round(len(system.answers) / seconds, 3),
        **{f"ttft_{key}": value for key, value in ttft.items()},
        **{f"itl_{key}": value for key, value in itl.items()},
        "requests": len(system.answers),
        "broken": sum(answer.broken for answer in system.answers),
        "gateway_cpu_share": round(system.cpu_s / seconds, 4) if system.gateway else None,
        "round_seconds": [round(one, 3) for one in system.seconds],
    }
    if (reference := REFERENCE.get(name)) is not None:
        pairs = np.array([systems[reference].seconds, system.seconds]).T
        found = bootstrap(pairs, _first_by_second)[0]
        row |= {"against": reference, "ratio": round(found.estimate, 4)}
        row |= {"ratio_low": round(found.low, 4), "ratio_high": round(found.high, 4)}
    return row


def _first_by_second(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return sums[:, :1] / sums[:, 1:]


def tell(part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of it."""
    print(f"\n{part}")
    columns = ("tokens_per_s", "requests_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", "broken")
    cells = []
    for row in rows:
        ratio = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})" if "ratio" in row else ""
        cpu = row["gateway_cpu_share"]
        cells.append(
            [
                row["system"],
                *(f"{row[column]:,g}" for column in columns),
                "" if cpu is None else f"{cpu:.1%}",
                *([ratio, f"× {row['against']}"] if ratio else ("", "")),
            ]
        )
    titles = [column.replace("_", " ").upper() for column in columns]
    print(table(["SYSTEM", *titles, "GATEWAY'S CPU", "RATIO (95 %)", ""], cells))


def verdict(row: Mapping[str, Any]) -> str:
    """What the rounds say of the target."""
    if row["ratio_low"] >= TARGET:
        return "met"
    return "missed" if row["ratio_high"] < TARGET else "not shown: the interval holds it"


def systems_of(part: str, house: House) -> dict[str, System]:
    """The part's systems, everything they need started."""
    models = [f"bot-{number}" for number in range(1, 1 + (1 if part == "throughput" else ADAPTERS))]
    house.start_engine()
    rank, modules = SHAPE[part]
    versions = [house.new_version(model, seed=seed, rank=rank, modules=modules)[0] for seed, model in enumerate(models)]
    for model in models:
        house.route(model, {1: 10_000})
    house.wait_ready()
    for version in versions:
        house.wait_serving(version)
    direct = [Target(house.engine_url, f"{model}@1") for model in models]
    ours = house.gateway("as-it-comes")
    through = [Target(ours.url, model, house.key) for model in models]
    if part == "mixed":
        base = System([Target(house.engine_url, house.base.name)])
        return {BASE: base, MIXED: System(direct), MIXED_OURS: System(through, ours)}
    textless = house.gateway("no-texts", TUNELOOP_GATEWAY_RECORD_TEXT="none")
    return {
        DIRECT: System(direct),
        OURS: System(through, ours),
        TEXTLESS: System([Target(textless.url, models[0], house.key)], textless),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--parts", nargs="+", choices=SHAPE, default=list(SHAPE))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {}
    for part in given.parts:
        where = machine()
        print(where["machine"], flush=True)
        with ExitStack() as stack:
            house = House(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
            systems = systems_of(part, house)
            print("all is started", flush=True)
            few = LENGTHS[:4]
            seconds, lengths, warming = (0.0, few, few) if given.quick else (MEASURE_S, LENGTHS, LENGTHS[:WARMING])
            others = Others()
            asyncio.run(measure(systems, seconds, lengths, warming))
            where["others_share"] = others.share()
            dtype = house.wait_for("dtype:").text
        print(f"others took {where['others_share']:.0%} of the cores meanwhile")
        rows = [row_of(name, systems) for name in systems]
        tell(part, rows)
        verdicts = {row["system"]: verdict(row) for row in rows if row["system"] in {OURS, TEXTLESS, MIXED_OURS}}
        for name, said in verdicts.items():
            print(f"{name}: at least {TARGET:.0%} of {REFERENCE[name]}: {said}")
        setting = {"base": house.base.name, "users": USERS, "rank": SHAPE[part][0], "modules": list(SHAPE[part][1])}
        setting |= {"engine": dtype, "answer_tokens": [min(LENGTHS), max(LENGTHS)]}
        found[part] = where | {"quick": given.quick, "setting": setting, "rows": rows, "target": verdicts}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    broken = sum(row["broken"] for row in chain.from_iterable(found[part]["rows"] for part in given.parts))
    if broken:
        raise SystemExit(f"{broken} answers were not whole: their throughput is worth nothing")


if __name__ == "__main__":
    main()
