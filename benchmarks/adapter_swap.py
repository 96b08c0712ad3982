"""What users notice of an adapter that is loaded or swapped under them, and how long a load takes.

    python benchmarks/adapter_swap.py                # both parts, about eight minutes
    python benchmarks/adapter_swap.py --parts swap   # one; the other in the JSON file stays
    python benchmarks/adapter_swap.py --quick        # shorter, to see that it runs

`swap`: four users stream answers of an adapter through the gateway and four those of the base from vLLM. A minute of
that; then the same while adapters of rank 16 on all linear layers are staged one after another and taken off again;
then with versions promoted, the former being drained and unloaded. The time between two events of a stream is counted
to a load if it overlaps the agent's fetching, checking, loading and warming. Nothing may be missing of any answer; at
temperature 0 its text is held against what the same question got first: how often it differs without any load says
how exact vLLM itself is.

`load_time`: the agent's whole way with an adapter on an idle engine, by rank and by the modules it is on. `notice` and
`turn` are waits for the agent's next look (once a second each). The files are in the page cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from engine import ROOT
from through_vllm.asking import Answer, Asked, Target, ask, quantiles_ms, session
from through_vllm.house import House, Others, machine
from through_vllm.loading import FULL, Load, load, loaded, unload, unloaded
from tuneloop.registry.nouns import Version
from tuneloop.registry.printing import table
from tuneloop.registry.versions.adapters import SERVED_MODULES

RESULTS = ROOT / "benchmarks" / "results" / "adapter_swap.json"
MODEL = "bot"
USERS, QUESTIONS, TOKENS = 4, 3, 48  # users of each kind
WARMING_S, BEFORE_S, BETWEEN_S = 12.0, 60.0, 3.0
LOADS, SWAPS, REPEATS = 5, 2, 2
RANKS = (8, 16, 64)
MODULES = {"q, v": ("q_proj", "v_proj"), "all linear": SERVED_MODULES}
Window = tuple[float, float]


@dataclass
class Crowd:
    """Users who stream one answer after another until they are told to stop."""

    targets: Mapping[str, Target]  # kind → whom its users ask
    answers: list[tuple[str, int, Answer]] = field(default_factory=list)  # (kind, question, answer)
    ended: bool = False

    async def run(self) -> None:
        """Until `ended`; every answer that was begun is heard to its end."""
        async with session() as opened:
            users = [(kind, user) for kind in self.targets for user in range(USERS)]
            await asyncio.gather(*(self._user(opened, kind, user) for kind, user in users))

    async def _user(self, opened: aiohttp.ClientSession, kind: str, user: int) -> None:
        number = 0
        while not self.ended:
            question = user * QUESTIONS + number % QUESTIONS
            asked = Asked(f"Customer {question} asks: what can you do for me, and what not?", TOKENS)
            self.answers.append((kind, question, await ask(opened, self.targets[kind], asked)))
            number += 1


def gaps_s(answers: Iterable[Answer], windows: Sequence[Window]) -> list[list[float]]:
    """For each window the times between events that overlap it."""
    pairs = [pair for answer in answers for pair in answer.gaps()]
    return [[b - a for a, b in pairs if a < end and b > begin] for begin, end in windows]


def p99_ratio(during: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """p99 during by p99 before, with the 95 % bootstrap interval: whole windows are drawn, since what lies in one is
    of one cause."""
    random = np.random.default_rng(0)

    def p99(windows: Sequence[Sequence[float]]) -> float:
        return float(np.quantile(np.concatenate(windows), 0.99))

    def drawn(windows: Sequence[Sequence[float]]) -> list[Sequence[float]]:
        return [windows[index] for index in random.integers(len(windows), size=len(windows))]

    ratios = [p99(drawn(during)) / p99(drawn(before)) for _ in range(2_000)]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return p99(during) / p99(before), float(low), float(high)


def same_text(answers: Iterable[tuple[str, int, Answer]], first: Mapping[tuple[str, int], Answer]) -> dict[str, int]:
    """How many later answers say what their question was answered first."""
    compared = [
        answer.text == first[kind, question].text
        for kind, question, answer in answers
        if answer is not first[kind, question]
    ]
    return {"compared": len(compared), "same": sum(compared)}


async def swap(house: House, versions: Sequence[Version], *, quick: bool) -> dict[str, Any]:
    """The streams' minute before, the loads, the swaps."""
    gateway = house.gateway("gateway")
    crowd = Crowd({"adapter": Target(gateway.url, MODEL, house.key), "base": Target(house.engine_url, house.base.name)})
    running = asyncio.create_task(crowd.run())
    await asyncio.sleep(WARMING_S)
    before = time.monotonic()
    await asyncio.sleep(BEFORE_S / 6 if quick else BEFORE_S)
    first_load = time.monotonic()
    champion, *others = versions
    loads: list[Load] = []
    for version in others[:-SWAPS]:
        loads.append(await load(house, version, champion))
        await unload(house, version, champion)
        await asyncio.sleep(BETWEEN_S)
    first_swap = time.monotonic()
    promoted: list[float] = []
    for version in others[-SWAPS:]:
        asked = time.monotonic()
        await asyncio.to_thread(house.route, MODEL, {version.version: FULL})
        promoted.append(time.monotonic())
        loads.append(await loaded(house, version, asked))
        await unloaded(house, champion)
        champion = version
    crowd.ended = True
    await running
    return _told(crowd, loads, promoted, before, first_load, first_swap)


def _told(
    crowd: Crowd, loads: Sequence[Load], promoted: Sequence[float], before: float, first_load: float, first_swap: float
) -> dict[str, Any]:
    old = [item for item in crowd.answers if item[2].version in {"", f"{MODEL}@1"}]
    first: dict[tuple[str, int], Answer] = {}
    for kind, question, answer in sorted(old, key=lambda item: item[2].began):
        first.setdefault((kind, question), answer)
    ends = {id(answer): answer.events[-1] if answer.events else answer.began for _, _, answer in crowd.answers}
    quiet = [item for item in old if before <= item[2].began and ends[id(item[2])] < first_load]
    touched = [
        item for item in old if any(item[2].began < one.ready_at and ends[id(item[2])] > one.fetch_at for one in loads)
    ]
    rows = []
    minute = [(at, at + 5.0) for at in np.arange(before, first_load - 5.0, 5.0)]
    windows = {
        "the minute before": minute,
        "fetch to ready": [(one.fetch_at, one.ready_at) for one in loads],
        "load and warm alone": [(one.load_at, one.ready_at) for one in loads],
    }
    for kind in (*crowd.targets, "both"):
        answers = [answer for of, _, answer in crowd.answers if kind in {of, "both"}]
        found = {name: gaps_s(answers, of) for name, of in windows.items()}
        for name, gaps in found.items():
            flat = [gap for window in gaps for gap in window]
            row = {"streams": kind, "when": name, "windows": len(gaps), "gaps": len(flat), **quantiles_ms(flat)}
            row["longest_ms"] = round(1e3 * max(flat), 1)
            if name != "the minute before":
                ratio = p99_ratio(gaps, found["the minute before"])
                row |= dict(zip(("p99_ratio", "ratio_low", "ratio_high"), (round(r, 3) for r in ratio), strict=True))
            rows.append(row)
    everything = [answer for _, _, answer in crowd.answers]
    return {
        "rows": rows,
        "streams": len(everything),
        "broken": sum(answer.broken for answer in everything),
        "across_a_load": len(touched),
        "across_a_promotion": sum(
            any(answer.began < at < ends[id(answer)] for at in promoted) for answer in everything
        ),
        "by_version": {
            name: sum(answer.version == name for answer in everything)
            for name in sorted({answer.version for answer in everything})
        },
        "same_text_without_a_load": same_text(quiet, first),
        "same_text_across_a_load": same_text(touched, first),
        "loads": [one.steps_s for one in loads],
        "swaps_s": [round(at - one.asked_at, 3) for at, one in zip(promoted, loads[-len(promoted) :], strict=True)],
        "seconds": {"before": first_load - before, "loads": first_swap - first_load},
    }


async def load_time(
    house: House, champion: Version, kinds: Mapping[tuple[int, str], Sequence[tuple[Version, int]]]
) -> list[dict[str, Any]]:
    """Each kind's loads, kinds in turn."""
    found: dict[tuple[int, str], list[Load]] = {kind: [] for kind in kinds}
    for repeat in range(max(map(len, kinds.values()))):
        for kind, versions in kinds.items():
            version, _ = versions[repeat]
            found[kind].append(await load(house, version, champion))
            await unload(house, version, champion)
    rows = []
    for (rank, modules), loads in found.items():
        row: dict[str, Any] = {"rank": rank, "modules": modules, "bytes": kinds[rank, modules][0][1]}
        for step in loads[0].steps_s:
            seen = [one.steps_s[step] for one in loads]
            row[step] = {"median_s": round(statistics.median(seen), 3), "all_s": [round(one, 3) for one in seen]}
        rows.append(row)
    return rows


def run_swap(house: House, *, quick: bool) -> dict[str, Any]:
    """Part one, from the engine's start on."""
    house.start_engine()
    versions = [house.new_version(MODEL, seed=seed)[0] for seed in range(1 + (1 if quick else LOADS) + SWAPS)]
    house.route(MODEL, {1: FULL})
    house.wait_ready()
    house.wait_serving(versions[0])
    others = Others()
    found = asyncio.run(swap(house, versions, quick=quick)) | {"others_share": others.share()}
    cells = [
        [
            *(row["streams"], row["when"]),
            *(f"{row[key]:,g}" for key in ("windows", "gaps", "p50_ms", "p99_ms", "longest_ms")),
            "{p99_ratio:.2f} ({ratio_low:.2f} to {ratio_high:.2f})".format(**row) if "p99_ratio" in row else "",
        ]
        for row in found["rows"]
    ]
    print(table(("STREAMS", "WHEN", "WINDOWS", "GAPS", "P50 MS", "P99 MS", "LONGEST MS", "P99 × BEFORE (95 %)"), cells))
    for key in ("streams", "broken", "across_a_load", "across_a_promotion"):
        print(f"{key.replace('_', ' ')}: {found[key]}")
    for key in ("same_text_without_a_load", "same_text_across_a_load"):
        print(f"{key.replace('_', ' ')}: {found[key]['same']} of {found[key]['compared']}")
    print(f"from `promote` to every gateway: {', '.join(f'{one:.2f} s' for one in found['swaps_s'])}")
    print(f"streams by version: {found['by_version']}")
    return found


def run_load_time(house: House, *, quick: bool) -> dict[str, Any]:
    """Part two, from the engine's start on."""
    house.start_engine(max_lora_rank=max(RANKS), max_cpu_loras=32)
    champion, _ = house.new_version(MODEL, seed=0)
    house.route(MODEL, {1: FULL})
    seeds = iter(range(1, 1_000))
    kinds = {
        (rank, name): [
            house.new_version(MODEL, seed=next(seeds), rank=rank, modules=modules)
            for _ in range(1 if quick else REPEATS)
        ]
        for rank in RANKS
        for name, modules in MODULES.items()
    }
    house.wait_ready()
    house.wait_serving(champion)
    others = Others()
    rows, others_share = asyncio.run(load_time(house, champion, kinds)), others.share()
    steps = [key for key in rows[0] if isinstance(rows[0][key], dict)]
    cells = [
        [row["rank"], row["modules"], f"{row['bytes'] / 1e6:.1f}", *(f"{row[step]['median_s']:.3f}" for step in steps)]
        for row in rows
    ]
    print(table(("RANK", "MODULES", "MB", *(f"{step.upper()}, S" for step in steps)), cells))
    return {"rows": rows, "others_share": others_share}


def main() -> None:
    """Measure, print, write."""
    parts = {"swap": run_swap, "load_time": run_load_time}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {}
    broken = 0
    for part in given.parts:
        where = machine()
        print(f"\n{part}; {where['machine']}", flush=True)
        with ExitStack() as stack:
            house = House(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
            seen = parts[part](house, quick=given.quick)
            print(f"others took {seen['others_share']:.0%} of the cores meanwhile")
            setting = {"base": house.base.name, "engine": house.wait_for("dtype:").text}
        found[part] = where | {"quick": given.quick, "setting": setting} | seen
        broken += seen.get("broken", 0)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if broken:
        raise SystemExit(f"{broken} streams were not whole")


if __name__ == "__main__":
    main()
