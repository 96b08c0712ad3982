"""The guards over a JSONL file, one line at a time: memory is that of the longest line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import click

from tuneloop.registry.printing import emit, one_line, table
from tuneloop.serve.guards.judge import WARM_UP, Guards, may_be_personal
from tuneloop.serve.guards.verdict import Verdict

_LONGEST_LINE = 64 * 1024 * 1024  # bytes
_OURS = frozenset({"line", *Verdict.model_fields})


@dataclass
class Scanned:
    """Counts of a scan."""

    lines: int = 0
    bad: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)

    def print(self, as_json: bool) -> None:
        """Print the counts."""
        counts = {
            "lines": self.lines,
            "bad": self.bad,
            "actions": dict(self.actions.most_common()),
            "findings": dict(self.findings.most_common()),
        }
        rows = [
            ["lines", self.lines],
            ["bad lines", self.bad],
            *self.actions.most_common(),
            *self.findings.most_common(),
        ]
        emit(counts, as_json, table(["WHAT", "LINES"], rows))


class _BadLine(ValueError):
    """A line that holds no text to judge."""


def scan_lines(lines: IO[bytes], guards: Guards, *, show: bool) -> Scanned:
    """Judge every line and print its verdict with `show`; bad lines are named on standard error and counted."""
    done, warm = Scanned(), False
    guards.judge("")
    for number, line in enumerate(_bounded(lines), start=1):
        if not line.strip():
            continue
        done.lines += 1
        try:
            row = _row(line)
        except _BadLine as error:
            done.bad += 1
            click.echo(f"line {number}: {one_line(str(error))}", err=True)
            continue
        text = row.pop("text")
        if not warm and may_be_personal(text):
            guards.judge(WARM_UP)  # Presidio takes seconds to come, which are not this text's
            warm = True
        verdict = guards.judge(text)
        done.actions[verdict.action] += 1
        done.findings.update({f"{reason.guard}: {reason.kind.split(';')[0]}" for reason in verdict.reasons})
        if show:
            # ASCII: what a text holds may be meant to command the terminal it is shown on.
            click.echo(json.dumps({"line": number} | row | verdict.model_dump(exclude_none=True)))
    if done.bad:
        click.echo(f"{done.bad} of {done.lines} lines could not be read", err=True)
    return done


def _row(line: bytes) -> dict[str, Any]:
    if len(line) > _LONGEST_LINE:
        raise _BadLine(f"is longer than {_LONGEST_LINE} bytes")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadLine(f"is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise _BadLine('has no "text" that is a string; write {"text": "…"}')
    if taken := sorted(_OURS & row.keys()):
        raise _BadLine(f"has a key of the verdict's own: {', '.join(taken)}; name it otherwise")
    return row


def _bounded(lines: IO[bytes]) -> Iterator[bytes]:
    """Lines; of one that is too long only its beginning is kept."""
    while line := lines.readline(_LONGEST_LINE + 1):
        yield line
        while len(line) > _LONGEST_LINE and not line.endswith(b"\n"):
            if not (line := lines.readline(_LONGEST_LINE + 1)):
                return
