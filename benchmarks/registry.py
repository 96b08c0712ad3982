"""What the registry costs as it grows: versions read, listed, published, promoted, rolled back; routes read; gateways
that follow.

    .venv/bin/python benchmarks/registry.py [--quick] [--only PARTS] [--json FILE]

On SQLite and on PostgreSQL (a cluster of its own), with 10, 1,000 and 100,000 versions and as many revisions of their
route, each operation of ours in turn with the call to MLflow's own client that comes nearest; ratios are medians of
such pairs. `connect` is a registry's first word with MLflow. Then looks at the aliases of many models, also behind an
MLflow server; the gateway looking up 1,000 models of 5 arms; and the time from the write of a route until each of 50
gateways applies it. Takes some seven minutes; `--quick`, with 10 and 1,000 versions and 10 gateways, about two. Exits 1
where a promise is not kept: an operation takes ten times as long with the most versions as with the fewest, a look at
aliases more than the time it has, a change more than 2 s to a gateway, or one in a hundred lookups more than 1 ms.

Of a gateway's lookups one in a thousand takes milliseconds where other work has the processor, and microseconds of the
processor's own time, with Python's collector or without it. A list of every version is as long as it is: that alone
grows. Behind an MLflow server its list of models does too, and on PostgreSQL its first page of a model's newest
versions: what they take there is the server's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from registry_parts.grown import databases, grown
from registry_parts.looks import Look, measure_looks
from registry_parts.lookups import measure_lookups
from registry_parts.operations import Line, Size
from registry_parts.propagation import measure_propagation
from tuneloop.registry.aliases.watch import ASK_TIMEOUT_S
from tuneloop.registry.printing import table

SIZES, PAIRS, GATEWAYS, CHANGES = (10, 1_000, 100_000), 6, 50, 20
LOOKED_AT = (100, 1_000, 5_000)  # models
SEEN_BEHIND_A_SERVER = 3_000  # models, of one worker: with more a look does not come round in its time
REACHED_WITHIN_S, LOOKUP_P99_US = 2.0, 1_000.0  # what is promised
FLAT = 10.0  # times; a busy machine makes single milliseconds three times as long
GROWS = "versions, every one"
PARTS = ("sizes", "looks", "lookups", "propagation")


def machine() -> dict[str, object]:
    """What this ran on, and how busy that was with other work."""
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "note": "absolute times are those of a shared machine; ratios are of pairs in one run",
    }


def show(
    lines: Sequence[Line],
    looks: Sequence[Look],
    lookups: Mapping[str, float],
    reached: Sequence[Mapping[str, float | str]],
) -> str:
    """Four tables."""
    rows = [
        [
            line.database,
            line.operation,
            f"{line.versions:,}",
            f"{line.ours_ms:.2f}",
            line.client,
            None if line.client_ms is None else f"{line.client_ms:.2f}",
            None if line.ratio is None else f"{line.ratio:.2f}",
        ]
        for line in sorted(lines, key=lambda line: (line.database, line.operation, line.client, line.versions))
    ]
    parts = [table(["DATABASE", "OPERATION", "VERSIONS", "OURS, MS", "MLFLOW'S CLIENT", "MS", "OURS / CLIENT"], rows)]
    looked = [[one.mlflow, f"{one.models:,}", f"{one.whole_ms:.1f}", f"{one.mlflow_ms:.1f}"] for one in looks]
    parts.append(table(["MLFLOW", "MODELS", "A LOOK AT THEIR ALIASES, MS", "OF THAT, MLFLOW'S"], looked))
    parts.append(table(["GATEWAY", ""], [[name, f"{value:.4g}"] for name, value in lookups.items()]))
    rows = [[f"{value:.3g}" if isinstance(value, float) else value for value in one.values()] for one in reached]
    parts += [table(list(one), rows) for one in reached[:1]]
    return "\n\n".join(parts)


def broken_promises(
    lines: Sequence[Line],
    looks: Sequence[Look],
    lookups: Mapping[str, float],
    reached: Sequence[Mapping[str, float | str]],
) -> list[str]:
    """What was promised and is not so here."""
    found = [
        f"{one['database']}: a change reached the last gateway after {float(one['all_gateways_max_s']):.2f} s, "
        f"{REACHED_WITHIN_S:g} s are promised"
        for one in reached
        if float(one["all_gateways_max_s"]) > REACHED_WITHIN_S
    ]
    if (p99_us := lookups.get("lookup_p99_us", 0.0)) > LOOKUP_P99_US:
        found.append(f"one in a hundred lookups takes more than {p99_us:.0f} µs, {LOOKUP_P99_US:g} µs are promised")
    found += [
        f"{one.mlflow}: a look at {one.models:,} models takes {one.mlflow_ms / 1e3:.1f} s, it has {ASK_TIMEOUT_S:g} s"
        for one in looks
        if one.mlflow_ms > 1e3 * ASK_TIMEOUT_S
        and not (one.mlflow.startswith("server") and one.models > SEEN_BEHIND_A_SERVER)
    ]
    fewest, most = (chosen((line.versions for line in lines), default=0) for chosen in (min, max))
    least = {(line.database, line.operation, line.client): line.ours_ms for line in lines if line.versions == fewest}
    for line in lines:
        times = line.ours_ms / least[line.database, line.operation, line.client]
        if line.versions == most and line.operation != GROWS and times > FLAT:
            found.append(f"{line.database}: {line.operation} takes {times:.0f} times as long with {most:,} versions")
    return found


def measure(part: str, kinds: Mapping[str, Callable[[], str]], *, quick: bool) -> object:
    """One part of the results."""
    if part == "sizes":
        sizes, pairs = (SIZES[:2], 5) if quick else (SIZES, PAIRS)
        lines: list[Line] = []
        for kind, url in kinds.items():
            for versions in sizes:
                with grown(url, versions) as registry:
                    lines += Size(kind, registry, versions, pairs).lines()
        return [asdict(line) for line in lines]
    if part == "looks":
        looked_at = LOOKED_AT[:1] if quick else LOOKED_AT
        return [asdict(look) for kind, url in kinds.items() for look in measure_looks(kind, url, looked_at)]
    if part == "lookups":
        return measure_lookups()
    gateways, changes = (10, 5) if quick else (GATEWAYS, CHANGES)
    return [measure_propagation(kind, url, gateways, changes) for kind, url in kinds.items()]


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure anew, of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --only: other parts of it stay")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    logging.disable(logging.ERROR)  # what MLflow and gateways say of themselves
    found = json.loads(options.json.read_text(encoding="utf-8")) if options.json and options.json.exists() else {}
    with databases() as kinds:
        for part in parts:
            before = machine()
            found[part] = measure(part, kinds, quick=options.quick)
            found.setdefault("machine", {})[part] = before | {"load_average_after": os.getloadavg()}
            if options.json:
                options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    lines, looks = [Line(**line) for line in found.get("sizes", ())], [Look(**look) for look in found.get("looks", ())]
    lookups, reached = found.get("lookups", {}), found.get("propagation", ())
    print(show(lines, looks, lookups, reached))
    if broken := broken_promises(lines, looks, lookups, reached):
        raise SystemExit("\n".join(broken))


if __name__ == "__main__":
    main()
