"""A quarter on a fast clock: does the monitor find, name and tell once what goes wrong, and let the rest alone?

    .venv/bin/python benchmarks/simulated_quarter.py [--quick] [--json FILE] [--transcript FILE]

Thirteen weeks of about 11,000 questions with daily and weekly courses, three drifts, a bad version, a slow engine, an
injection campaign and a slow bias shift go through the real monitor. Takes five minutes of one processor (--quick:
four weeks, a minute and a half). Writes the table, the transcript (docs/quarter.md is one), and ends with 1 where a
promise was not kept. The same seed plays the same quarter.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from quarter_parts.findings import Findings, findings
from quarter_parts.plan import quarter, quick
from quarter_parts.story import HEADERS, document, table
from quarter_parts.world import Quarter, quarter_of


def main() -> int:
    parser = argparse.ArgumentParser(description="A simulated quarter of the monitor.")
    parser.add_argument("--quick", action="store_true", help="four weeks instead of thirteen")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--transcript", type=Path, help="write the document here")
    parser.add_argument("--seed", type=int, help="another quarter")
    parser.add_argument("--season-days", type=int, help="of the reference; 0 forgets that days have their course")
    options = parser.parse_args()
    logging.getLogger("tuneloop.monitor").setLevel(logging.CRITICAL)  # the transcript says it
    plan = quick() if options.quick else quarter()
    if options.seed is not None:
        plan = replace(plan, seed=options.seed)
    if options.season_days is not None:
        plan = replace(plan, settings=plan.settings.model_copy(update={"season_days": options.season_days}))
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="tuneloop-quarter-") as home, quarter_of(plan, Path(home)) as played:
        played.run()
        found = findings(played)
        lines = [HEADERS, *table(found)]
        if options.transcript is not None:
            options.transcript.write_text(document(played, found), encoding="utf-8")
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADERS) - 1)]
    for line in lines:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]))
    seconds = time.process_time() - began
    print(f"{found.answers:,} answers, {found.windows} windows, {seconds:.0f} s of processor time")
    print(f"false alarms: {len(found.false)}, the budget is {found.budget}")
    print("\n".join(f"not kept: {fault}" for fault in found.faults) or "every promise was kept")
    if options.json is not None:
        options.json.write_text(json.dumps(figures(played, found, seconds), indent=1) + "\n", encoding="utf-8")
    return 1 if found.faults else 0


def figures(played: Quarter, found: Findings, seconds: float) -> dict[str, Any]:
    """Everything that is printed, and what it rests on."""
    return {
        "days": played.plan.days,
        "seed": played.plan.seed,
        "questions": played.traffic.asked,
        "answers": found.answers,
        "windows": found.windows,
        "read_by_engines": played.engine.read,
        "processor_s": round(seconds, 1),
        "mean_run_length": played.plan.settings.mean_run_length,
        "false_alarms": [episode.evidence["summary"] for episode in found.false],
        "budget": found.budget,
        "events": [
            {
                "event": row.event.name,
                "kind": row.event.kind,
                "began": row.event.at.isoformat(),
                "found": row.episodes[0].opened_at.isoformat() if row.episodes else None,
                "answers": row.answers,
                "bound": row.event.bound,
                "named": row.named,
                "told": row.opened,
                "pages": row.pages,
                "requests": row.requests,
                "held": row.held,
                "faults": row.faults,
            }
            for row in found.rows
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
