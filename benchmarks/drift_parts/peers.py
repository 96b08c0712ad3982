"""False alarms and delay on the same streams of windows: the monitor's test, and Evidently's defaults beside it.

Evidently needs another pandas than the project's, so it lives in a scratch environment (also the home of Django's
message catalogues, sentences in two languages), made on demand; where that fails the table says so and holds ours
alone. It takes some ten seconds of a core for a window of 120 texts, so it has a stated time, and both are held against
each other on the streams that it has finished by then, the same share of every kind of change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
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
_INSTALL_S = 600


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


def measure(
    texts: dict[str, list[str]], pairs: Sequence[Pair], folder: Path, rounds: int, judge_s: float
) -> dict[str, Any]:
    """Detector → kind of change → false alarms before it, and windows until it was seen."""
    python, why = scratch(folder)
    catalogs = next(iter(folder.glob("lib/python*/site-packages/django")), None) if python else None
    made = streams(texts, list(pairs), catalogs, rounds)
    if python is None:
        return {"detectors": {"four looks": _ours_of(made)}, "evidently": f"not measured: {why}"}
    theirs, failure = _theirs(python, made, judge_s)
    kinds = len({stream.kind for stream in made})
    whole = next((i for i in range(len(made)) if i not in theirs), len(made)) // kinds * kinds
    if not whole:
        why = failure or f"no stream of every kind was judged in {judge_s:.0f} s"
        return {"detectors": {"four looks": _ours_of(made)}, "evidently": f"not measured: {why}"}
    judged = made[:whole]
    windows = sum(len(stream.windows) for stream in judged)
    seconds = sum(theirs[i]["seconds"] for i in range(whole)) / windows
    table = _table(judged, [theirs[i]["drifted"] for i in range(whole)])
    found = {
        "four looks": _ours_of(judged),
        "Evidently's defaults": table | {"seconds_a_window": round(seconds, 3)},
    }
    return {"detectors": found, "evidently": f"{NEEDS[0]}, {whole} of {len(made)} streams in {judge_s:.0f} s"}


def _theirs(python: Path, made: Sequence[Stream], judge_s: float) -> tuple[dict[int, dict[str, Any]], str]:
    """Stream → what Evidently says of its windows, of those it got to in time; and why it failed, if it did."""
    workers = min(os.cpu_count() or 1, len(made))
    until = time.monotonic() + judge_s
    alone = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # a core for each
    found: dict[int, dict[str, Any]] = {}
    failure = ""
    with tempfile.TemporaryDirectory() as scratch_folder:
        running = []
        for number in range(workers):
            asked = Path(scratch_folder) / f"asked-{number}.json"
            mine = {i: made[i] for i in range(number, len(made), workers)}
            asked.write_text(json.dumps({i: [s.reference, s.windows] for i, s in mine.items()}))
            said = asked.with_name(f"said-{number}.jsonl")
            command = [str(python), str(_WORKER), str(asked), str(said)]
            running.append((subprocess.Popen(command, env=alone, stderr=subprocess.PIPE, text=True), said))
        for process, said in running:
            try:
                _, error = process.communicate(timeout=max(0.0, until - time.monotonic()))
                failure = error.strip()[-300:] if process.returncode else failure
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            lines = said.read_text().split("\n")[:-1] if said.exists() else []  # whole lines alone
            found |= {row["stream"]: row for row in map(json.loads, lines)}
    return found, failure


def _ours_of(made: Sequence[Stream]) -> dict[str, Any]:
    begun = time.process_time()
    ours = [[_ours(stream, window, i) for i, window in enumerate(stream.windows)] for stream in made]
    each = (time.process_time() - begun) / sum(len(stream.windows) for stream in made)
    return _table(made, ours) | {"seconds_a_window": round(each, 3)}


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
