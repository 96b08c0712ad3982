"""`tuneloop guard scan · policy`."""

from __future__ import annotations

from pathlib import Path

import click

from tuneloop.registry import Registry
from tuneloop.registry.guard_policy import GuardPolicy, current_guards
from tuneloop.registry.printing import emit, json_option
from tuneloop.registry.verbs.policy import policy_options, read_policy, set_policy, show_policy


@click.group()
def guard() -> None:
    """Guards on what goes to a model and comes from it: their policy, and what they would do with texts of your own."""


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
    from tuneloop.serve.guards.scan import scan_lines

    guards = Guards(read_policy(policy_path, GuardPolicy) if policy_path else GuardPolicy())
    with click.open_file(file, "rb") as lines:
        done = scan_lines(lines, guards, show=not summary)
    if summary:
        done.print(as_json)
    return 2 if done.bad else 0


@guard.command("policy")
@click.argument("model")
@policy_options
@json_option
def guard_policy(model: str, path: Path | None, by: str | None, reason: str | None, as_json: bool) -> None:
    """Show a model's guard policy, or set a new revision of it; gateways apply it within 2 s."""
    with Registry.open() as registry:
        registry.check_model(model)
        if path is not None:
            set_policy(registry, model, GuardPolicy, path, by, reason)
        in_force = current_guards(registry.database)
        if model in in_force or model in in_force.unreadable:
            show_policy(registry, model, GuardPolicy, as_json)
        else:
            emit(None, as_json, f"{model} has no guard policy: gateways pass everything")
