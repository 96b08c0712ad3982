"""False alarms and delay on the same streams of windows: the monitor's test, and Evidently's defaults beside it.

Evidently needs another pandas than the project's, so it lives in a scratch environment (also the home of Django's
message catalogues, sentences in two languages), made on demand; where that fails the table says so and holds ours
alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift_parts.corpus import Pair
from drift_parts.power import ALPHA
from drift_parts.streams import AFTER, BEFORE, Stream, streams
from tuneloop.monitor.textdrift import text_test

NEEDS = ("evidently==0.7.23", "pandas<3", "Django==5.2.*")
_WORKER = Path(__file__).with_name("evidently_worker.py")
_INSTALL_S, _JUDGE_S = 600, 3_000


def scratch(folder: Path) -> tuple[Path | None, str]:
    """The interpreter of the scratch environment, made if need be; or None and why not."""
    python = folder / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    steps = [[str(uv), "pip", "install", "-q", "--no-config", "--python", str(python), *NEEDS]]
    if not python.exists():
        steps.insert(0, [sys.executable, "-m", "venv", "--without-pip", str(folder)])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
        if done.returncode:
            return None, done.stderr.strip()[-300:]
    return python, ""


def measure(texts: dict[str, list[str]], pairs: Sequence[Pair], folder: Path, rounds: int) -> dict[str, Any]:
    """Detector → kind of change → false alarms before it, and windows until it was seen."""
    python, why = scratch(folder)
    catalogs = next(iter(folder.glob("lib/python*/site-packages/django")), None) if python else None
    made = streams(texts, list(pairs), catalogs, rounds)
    begun = time.perf_counter()
    ours = [[_ours(stream, window, i) for i, window in enumerate(stream.windows)] for stream in made]
    windows = sum(len(stream.windows) for stream in made)
    found = {
        "three looks": _table(made, ours) | {"seconds_a_window": round((time.perf_counter() - begun) / windows, 3)}
    }
    if python is None:
        return {"detectors": found, "evidently": f"not measured: {why}"}
    asked = json.dumps([{"reference": stream.reference, "windows": stream.windows} for stream in made])
    said = subprocess.run(
        [str(python), str(_WORKER)], input=asked, capture_output=True, text=True, timeout=_JUDGE_S, check=False
    )
    if said.returncode:
        return {"detectors": found, "evidently": f"not measured: {said.stderr.strip()[-300:]}"}
    theirs = json.loads(said.stdout)
    each = {"seconds_a_window": round(theirs["seconds"] / windows, 3)}
    found["Evidently's defaults"] = _table(made, theirs["drifted"]) | each
    return {"detectors": found, "evidently": NEEDS[0]}


def _ours(stream: Stream, window: Sequence[str], index: int) -> bool:
    rng = np.random.default_rng(index)
    return text_test([*stream.reference, *window], len(stream.reference), ALPHA, rng).outcome.alarm


def _table(made: Sequence[Stream], drifted: Sequence[Sequence[bool]]) -> dict[str, Any]:
    before = [alarm for row in drifted for alarm in row[:BEFORE]]
    kinds: dict[str, list[int]] = {}
    for stream, row in zip(made, drifted, strict=True):
        after = row[BEFORE:]
        kinds.setdefault(stream.kind, []).append(after.index(True) + 1 if True in after else AFTER + 1)
    return {
        "false_alarms": sum(before),
        "usual_windows": len(before),
        "kinds": {
            kind: {
                "streams": len(delays),
                "seen": sum(delay <= AFTER for delay in delays),
                "windows_until_seen": round(float(np.mean(delays)), 2),  # one never seen counts as one more than all
            }
            for kind, delays in kinds.items()
        },
    }
