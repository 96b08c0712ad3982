"""`tuneloop guard`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def guard() -> None:
    """Guards on what comes in: what they would do with texts of your own."""


@guard.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--policy", "policy_path", type=click.Path(path_type=Path, dir_okay=False), help="YAML file; see docs/guards.md."
)
@click.option("--summary", is_flag=True, help="Print counts by action and by finding instead of verdicts.")
@click.option("--json", "as_json", is_flag=True, help="With --summary: as JSON. Verdicts are JSON anyhow.")
def scan(file: str, policy_path: Path | None, summary: bool, as_json: bool) -> int:
    """Judge each {"text": …} of a JSONL FILE (`-`: standard input); one JSON verdict a line, other keys kept."""
    from tuneloop.serve.guards.judge import Guards
    from tuneloop.serve.guards.policy import GuardPolicy, read_policy
    from tuneloop.serve.guards.scan import scan_lines

    guards = Guards(read_policy(policy_path) if policy_path else GuardPolicy())
    with click.open_file(file, "rb") as lines:
        done = scan_lines(lines, guards, show=not summary)
    if summary:
        done.print(as_json)
    return 2 if done.bad else 0
