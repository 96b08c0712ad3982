"""What the gateway costs: against the engine alone, and against nginx, vllm-router and LiteLLM's proxy in its place.

    python benchmarks/gateway_overhead.py                      # everything, about ten minutes
    python benchmarks/gateway_overhead.py --parts throughput   # one table; the others in the JSON file stay
    python benchmarks/gateway_overhead.py --quick              # a minute, to see that it runs

Each system is held on one core; the stub engine and the load are on another. Systems take turns within a part, so this
machine's drift meets all alike: compare inside a part only, and where others use the machine too, by the CPU a request
takes (`by cpu`), which they spoil less than its rate. `added` is the difference to the engine alone at the same
quantile. Our gateway checks keys, assigns versions, counts and records every request (without its text); nginx and
vllm-router only pass on, LiteLLM checks one key and stores nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from overhead import peers
from overhead.loads import Latencies, OpenLoop, closed_loop, request_of, streams
from overhead.memory import growth
from overhead.systems import Stage, System, used
from tuneloop.registry.printing import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gateway_overhead.json"
LOAD_CORE, SYSTEM_CORE = 0, 1
REST_S, REST_FOR_S, AT_REST = 120.0, 0.5, 0.2  # a share of a core: idle, all of them together take some 0.05
OURS, REFERENCE = "tuneloop", "vllm-router"
RATES = (100, 500, 1_000)
CONCURRENT = (16, 64)
STREAMS = (200, 1_000)
LONG_PROMPT = "What does the function of the module do when it is called twice? " * 1_538  # 99,970 characters
DROPPED = "tuneloop_records_dropped_total"
Row = dict[str, Any]


class Bench:
    """The systems of one run and how long each is loaded."""

    def __init__(
        self, stage: Stage, systems: Mapping[str, Callable[..., System]], *, quick: bool, requests: int
    ) -> None:
        self.stage = stage
        self._start = systems
        self.seconds = 1.0 if quick else 4.0
        self.rounds = 1 if quick else 3
        self.requests = requests

    def systems(self, *, streams: bool = False) -> dict[str, System]:
        """Every system, started."""
        return {name: start(streams=streams) for name, start in self._start.items()}

    def throughput(self) -> list[Row]:
        """As many requests as go through at 16 and 64 connections."""
        systems = self.systems()
        rows = []
        for connections in CONCURRENT:
            found: dict[str, list[Row]] = defaultdict(list)
            for _ in range(self.rounds):
                for name, system in systems.items():
                    at_rest(systems)
                    dropped = system.metric(DROPPED) if name == OURS else 0.0
                    with used(system) as cpu:
                        closed = closed_loop(system, connections, self.seconds, LOAD_CORE)
                    dropped = system.metric(DROPPED) - dropped if name == OURS else 0.0
                    rate = closed.requests / closed.seconds
                    found[name].append(
                        {
                            "requests_per_s": rate,
                            "cpu_us_per_request": 1e6 * cpu() / rate if rate else 0.0,
                            "cpu_share": cpu(),
                            "p50_ms": closed.p50_ms,
                            "p99_ms": closed.p99_ms,
                            "errors": closed.errors,
                            "records_dropped_share": dropped / max(1, closed.requests),
                            "memory_mb": system.memory_mb(),
                        }
                    )
            for name, runs in found.items():
                row = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
                row |= {"system": name, "connections": connections}
                for other in (REFERENCE, "litellm"):
                    if other in found:
                        pairs = zip(runs, found[other], strict=True)
                        both = [(a, b) for a, b in pairs if a["cpu_us_per_request"] and b["cpu_us_per_request"]]
                        if not both:  # one of them got nothing through
                            continue
                        row[f"times_{other}"] = _median([a["requests_per_s"] / b["requests_per_s"] for a, b in both])
                        row[f"times_{other}_by_cpu"] = _median(
                            [b["cpu_us_per_request"] / a["cpu_us_per_request"] for a, b in both]
                        )
                rows.append(row)
        return rows

    def open_loop(self) -> list[Row]:
        """Added latency at fixed rates."""
        return self._open(self.systems(), RATES, None)

    def prompt(self) -> list[Row]:
        """Added latency of a prompt of 100 kB."""
        return self._open(self.systems(), (50,), LONG_PROMPT)

    def _open(self, systems: Mapping[str, System], rates: Sequence[int], text: str | None) -> list[Row]:
        rows, given_up = [], set()
        for rate in rates:
            found: dict[str, list[Latencies]] = defaultdict(list)
            shares: dict[str, list[float]] = defaultdict(list)
            for number in range(self.rounds):
                for name, system in systems.items():
                    if name in given_up:
                        continue
                    at_rest(systems)
                    request = request_of(system) if text is None else request_of(system, text=text)
                    with used(system) as cpu:
                        one = OpenLoop(system, request, rate, self.seconds, seed=number).run()
                    found[name].append(one)
                    shares[name].append(cpu())
                    if not one.sustained:
                        given_up.add(name)
            for name, ones in found.items():
                rows.append(_latencies(name, ones, found["direct"], {"rate": rate, "cpu_share": _median(shares[name])}))
        return rows

    def event_delays(self) -> list[Row]:
        """Delay of events, from the engine's writing to the client's reading."""
        systems = self.systems(streams=True)
        rows = []
        for concurrent in STREAMS:
            found: dict[str, list[Latencies]] = {}
            shares = {}
            for name, system in systems.items():
                if name == "litellm" and concurrent > STREAMS[0]:
                    continue  # it does not sustain the fewer ones
                at_rest(systems)
                with used(system) as cpu:
                    found[name] = [streams(system, concurrent, 2 * self.seconds)]
                shares[name] = cpu()
            for name, ones in found.items():
                fields = {"streams": concurrent, "cpu_share": round(shares[name], 3)}
                rows.append(_latencies(name, ones, found["direct"], fields))
        return rows

    def memory(self) -> list[Row]:
        """Our gateway's memory over many requests."""
        system = self._start[OURS](streams=False)
        return growth(system, self.requests, LOAD_CORE)


def at_rest(systems: Mapping[str, System]) -> None:
    """Wait until none is busy any more with what it was asked before: they share a core, and one that was asked for
    more than it can do goes on for long after nobody listens."""
    deadline = time.monotonic() + REST_S
    while time.monotonic() < deadline:
        before = sum(system.cpu_s() for system in systems.values())
        time.sleep(REST_FOR_S)
        if sum(system.cpu_s() for system in systems.values()) - before < AT_REST * REST_FOR_S:
            return
    raise SystemExit(f"the systems are still busy {REST_S:g} s after they were asked; nothing can be compared")


def _median(values: Sequence[float]) -> float | None:
    found = statistics.median(values)
    return round(found, 3) if math.isfinite(found) else None  # nothing was answered


def _latencies(name: str, ones: Sequence[Latencies], direct: Sequence[Latencies], fields: Row) -> Row:
    """The median over rounds of each quantile, and of its difference to the engine alone."""
    row: Row = {"system": name, **fields}
    for label, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        row[f"{label}_ms"] = _median([one.quantile(q) for one in ones])
        pairs = zip(ones, direct, strict=False)
        row[f"added_{label}_ms"] = _median([one.quantile(q) - base.quantile(q) for one, base in pairs])
    row["sustained"] = all(one.sustained for one in ones)
    row["answered_share"] = round(sum(len(one.ms) for one in ones) / max(1, sum(one.due for one in ones)), 4)
    row["failed"] = sum(one.failed for one in ones)
    return row


def tell(part: str, rows: Sequence[Row]) -> None:
    """A table of everything that was found."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = ["system", *(column for column in columns if column != "system")]
    cells = [[_shown(row.get(column)) for column in columns] for row in rows]
    print(f"\n{part}")
    print(table([column.replace("_", " ").upper() for column in columns], cells))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "–" if value is None else f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def busy_share() -> float:
    """How busy this machine is before anything of ours runs."""
    return round(psutil.cpu_percent(2.0) / 100, 3)


def main() -> None:
    """Measure, print, write."""
    parts = {
        "throughput": Bench.throughput,
        "open_loop": Bench.open_loop,
        "streams": Bench.event_delays,
        "prompt": Bench.prompt,
        "memory": Bench.memory,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument(
        "--systems", nargs="+", default=["nginx", "vllm-router", "litellm", OURS], help="beside `direct`"
    )
    parser.add_argument("--peers", type=Path, default=ROOT / ".cache" / "gateway-peers", help="their environments")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the memory run")
    parser.add_argument("--machine", default="", help="a few words on it for the file: cores, and whether it was quiet")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if absent := peers.missing():
        raise SystemExit(f"to be installed first: {', '.join(absent)}")
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed: one for the gateway, one for the engine and the load")
    found: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {}
    found.setdefault("parts", {})
    interpreters, versions, left_out = {}, {}, {}
    for peer in peers.PACKAGES.keys() & set(given.systems):
        python = peers.python_of(peer, given.peers)
        if isinstance(python, Path):
            interpreters[peer], versions[peer] = python, peers.version_of(peer, python)
        else:
            left_out[peer] = python
            print(f"{peer} is left out: {python}")
    found["cores"] = len(os.sched_getaffinity(0))
    for kind, told in (("peers", versions), ("left_out", left_out)):  # of earlier runs stay, as their tables do
        found[kind] = found.get(kind, {}) | told
    if given.machine:
        found["machine"] = given.machine
    os.sched_setaffinity(0, {LOAD_CORE})
    for part in given.parts:
        busy = busy_share()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stage = Stage(stack, folder, load_core=LOAD_CORE, system_core=SYSTEM_CORE)
            starts = {"direct": stage.direct, "nginx": stage.nginx, OURS: stage.gateway}
            starts |= {name: stage.peer(name, python) for name, python in interpreters.items()}
            wanted = {name: starts[name] for name in ("direct", *given.systems) if name in starts}
            rows = parts[part](Bench(stage, wanted, quick=given.quick, requests=given.requests))
        tell(part, rows)
        found["parts"][part] = {"machine_busy_before": busy, "quick": given.quick, "rows": rows}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
