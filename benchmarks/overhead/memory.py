"""Whether memory is flat: our gateway under one closed loop for many requests, its memory read along the way."""

from __future__ import annotations

from typing import Any

from overhead.loads import closed_loop
from overhead.systems import System

STEP_S = 5.0
CONNECTIONS = 16
LEAST_STEPS = 8  # or a half of them shows no growth


def growth(system: System, requests: int, core: int) -> list[dict[str, Any]]:
    """Memory after every few seconds, until so many requests have been answered; the last row says how it grew."""
    rows: list[dict[str, Any]] = []
    answered = errors = 0
    while answered < requests or len(rows) < LEAST_STEPS:
        closed = closed_loop(system, CONNECTIONS, STEP_S, core)
        answered += closed.requests
        errors += closed.errors
        rows.append({"system": system.name, "requests": answered, "errors": errors, "memory_mb": system.memory_mb()})
    half = [row for row in rows if row["requests"] >= answered / 2]
    first, last = half[0], half[-1]
    grown = last["memory_mb"] - first["memory_mb"]
    thousands = (last["requests"] - first["requests"]) / 1e3
    kept = rows[:: max(1, len(rows) // 10)]
    for row in [*kept, last]:
        row["memory_mb"] = round(row["memory_mb"], 1)
    return [
        *kept,
        last
        | {"grown_in_second_half_mb": round(grown, 2), "bytes_per_request": round(1e3 * grown / max(1e-9, thousands))},
    ]
