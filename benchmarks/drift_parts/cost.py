"""What a million records cost: judged in windows as the monitor does, and as one file by `drift check`."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from drift_parts.corpus import Pair
from drift_parts.power import REFERENCE, WINDOW, draw, four_looks
from tuneloop.monitor.cusum import Cusum

MILLION = 1_000_000
_WINDOWS = 20
_CHECK = """
import json, resource, sys, time
from pathlib import Path
from tuneloop.monitor.offline import check_files
begun = time.process_time()
found = check_files(Path(sys.argv[1]), Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"cpu_s": time.process_time() - begun, "peak_mib": peak, "verdict": found.verdict}))
"""


def measure(texts: dict[str, list[str]], pair: Pair) -> dict[str, Any]:
    """Processor seconds and peak memory."""
    begun = time.process_time()
    for number in range(_WINDOWS):
        four_looks(draw(texts, pair, 0.0, number), np.random.default_rng(number))
    windows_s = (time.process_time() - begun) / _WINDOWS * MILLION / WINDOW
    begun = time.process_time()
    rng = np.random.default_rng(0)
    Cusum(rng.normal(size=2_000), 100_000, rng).feed(rng.normal(size=MILLION))
    cusum_s = time.process_time() - begun
    return {
        "text_windows_of_120_against_600_cpu_s": round(windows_s, 1),
        "cusum_cpu_s": round(cusum_s, 1),
        "drift_check_of_a_million_lines": _check(texts[pair.usual], MILLION),
        "drift_check_of_a_hundred_thousand_lines": _check(texts[pair.usual], MILLION // 10),
        "peak_mib_of_this_process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _check(texts: list[str], lines: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        reference, window = Path(folder, "reference.jsonl"), Path(folder, "window.jsonl")
        rng = random.Random(0)
        with reference.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({"text": rng.choice(texts), "n": number}) + "\n" for number in range(lines))
        with window.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({"text": rng.choice(texts)}) + "\n" for _ in range(REFERENCE))
        done = subprocess.run(
            [sys.executable, "-c", _CHECK, str(reference), str(window)], capture_output=True, text=True, check=True
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"cpu_s": round(found["cpu_s"], 1), "peak_mib": round(found["peak_mib"])}
