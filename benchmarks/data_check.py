"""What `tuneloop data check` costs as files grow: processor time, which should be linear, and memory, which is bounded.

    .venv/bin/python benchmarks/data_check.py [--sizes 10000,100000] [--kinds instruction,…] [--json FILE]

Rows are generated: words of a vocabulary of 20,000 by Zipf's law, about 20 a row; one row in fifty stands twice, one
in fifty nearly, one in two hundred holds an address. Each size is checked in a process of its own, after a small file
that loads the libraries, so that time and memory are the rows'. `exponent` compares a size with the one before it: time
grows with rows ** exponent, and 1 is linear. Memory is the process's peak over what it held before the rows. Rows stay
on disk: `TMPDIR` needs room for them. A thousand rows take about half a second of processor time; 1,000,000 take most
of ten minutes for each kind.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from tuneloop.registry.printing import table

RESULT = "RESULT "
VOCABULARY, LETTERS = 20_000, "etaoinshrdlucmfwypvbgkjqxz"
WARM = 500  # rows that load the libraries
LINEAR = 1.1  # an exponent above it is called more than linear
Json = dict[str, Any]


def generated(kind: str, rows: int) -> Iterator[Json]:
    """So many rows of a kind, the same ones each time."""
    draw = random.Random(rows)
    words = ["".join(draw.choices(LETTERS[: 8 + n % 18], k=2 + n % 9)) for n in range(VOCABULARY)]
    weights = list(accumulate(1 / (place + 1) for place in range(VOCABULARY)))

    def text(count: int) -> str:
        return " ".join(draw.choices(words, cum_weights=weights, k=count))

    known: list[Json] = []  # a few rows to say again
    for _ in range(rows):
        chance = draw.random()
        if chance < 0.04 and known:
            old = draw.choice(known)
            yield old if chance < 0.02 else old | {"prompt": f"{old['prompt']} please"}
            continue
        row: Json = {"prompt": f"{text(draw.randint(6, 12))}?"}
        answer = text(draw.randint(6, 18)) + (" ann@example.org" if chance > 0.995 else "")
        if kind == "instruction":
            row["completion"] = answer
        elif kind == "preference":
            row |= {"chosen": answer, "rejected": text(draw.randint(4, 16))}
        if len(known) < 1_000:
            known.append(row)
        yield row


def one_check(path: Path, warm: Path) -> Json:
    """Check a file in this process; what it cost beyond the libraries."""
    from tuneloop.train.data.check import check_files  # noqa: PLC0415 (only the processes that check need it)
    from tuneloop.train.recipe.data import QualitySection  # noqa: PLC0415

    check_files([warm], [], QualitySection())
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began, clock = time.process_time(), time.monotonic()
    report = check_files([path], [], QualitySection())
    return {
        "rows": report.rows,
        "processor_s": time.process_time() - began,
        "wall_s": time.monotonic() - clock,
        "libraries_bytes": held,
        "rows_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held,
        "file_bytes": path.stat().st_size,
        "found": {one.check: one.rows for one in report.findings.findings if one.rows},
    }


def in_a_process(kind: str, rows: int, folder: Path) -> Json:
    path, warm = folder / f"{kind}.jsonl", folder / "warm.jsonl"
    for file, count in ((path, rows), (warm, WARM)):
        with file.open("w", encoding="utf-8") as opened:
            opened.writelines(json.dumps(row) + "\n" for row in generated(kind, count))
    command = [sys.executable, __file__, "--one", str(path), str(warm)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Json = json.loads(done.stdout.rpartition(RESULT)[2])
    return {"kind": kind} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000")
    parser.add_argument("--kinds", default="instruction,preference,prompt")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(RESULT + json.dumps(one_check(*given.one)))
        return
    sizes = sorted(int(size) for size in given.sizes.split(","))
    found: list[Json] = []
    with tempfile.TemporaryDirectory(prefix="tuneloop-benchmark-") as folder:
        for kind in given.kinds.split(","):
            before: Json | None = None
            for size in sizes:
                made = in_a_process(kind, size, Path(folder))
                made["bytes_per_row"] = made["rows_bytes"] / made["rows"]
                made["rows_per_s"] = made["rows"] / made["processor_s"]
                if before is not None:
                    made["exponent"] = math.log(made["processor_s"] / before["processor_s"]) / math.log(
                        made["rows"] / before["rows"]
                    )
                found.append(made)
                before = made
    head = ["kind", "rows", "file MB", "processor s", "rows/s", "exponent", "memory MB", "bytes/row"]
    rows = [
        (
            one["kind"],
            f"{one['rows']:,}",
            f"{one['file_bytes'] / 1e6:.1f}",
            f"{one['processor_s']:.1f}",
            f"{one['rows_per_s']:,.0f}",
            f"{one['exponent']:.2f}" if "exponent" in one else "",
            f"{one['rows_bytes'] / 1e6:,.0f}",
            f"{one['bytes_per_row']:,.0f}",
        )
        for one in found
    ]
    print(table(head, rows))
    steepest = max((one["exponent"] for one in found if "exponent" in one), default=None)
    if steepest is not None:
        said = "linear" if steepest <= LINEAR else f"MORE than linear (above {LINEAR})"
        print(f"steepest exponent {steepest:.2f}: {said}")
    print(f"libraries: {max(one['libraries_bytes'] for one in found) / 1e6:,.0f} MB")
    if given.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        values = {"machine": machine, "linear_up_to": LINEAR, "steepest_exponent": steepest, "checks": found}
        given.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
