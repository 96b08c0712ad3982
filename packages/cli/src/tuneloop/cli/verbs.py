"""The front door's own verbs: `config`, `up` and `demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import click

from tuneloop.cli.sections import sections


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def config(answers: TextIO | None, as_json: bool) -> None:
    """Print every effective setting and where it came from."""
    found = [
        {"section": section.section, "name": name, "value": _plain(value), "from": origin}
        for section in sections().values()
        for name, (value, origin) in section.load().origins().items()
    ]
    width = max(len(f"{row['section']}.{row['name']}") for row in found)
    lines = [f"{row['section']}.{row['name']}".ljust(width) + f"  {row['value']}  ({row['from']})" for row in found]
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines), file=answers)


@click.command()
@click.option(
    "--base",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The base model's folder.",
)
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where their output goes; logs of the state folder.",
)
def up(base: Path, logs: Path | None) -> None:
    """Run engine, gateway, monitor, worker, controller and control plane on this machine until Ctrl-C."""
    from tuneloop.cli.up import run

    if not base.is_dir():
        raise click.UsageError(f"--base {base} is no folder; `tuneloop base RECIPE` makes one and prints where")
    run(base, logs or sections()["registry"].load().home / "logs")


@click.command()
@click.option("--quick", is_flag=True, help="Fewer steps and requests: the loop, not the quality.")
@click.option(
    "--example",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("examples/python-helper"),
    show_default=True,
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".tuneloop/demo"),
    show_default=True,
    help="The demo's own folder: new, empty, or left by a demo before; emptied first.",
)
def demo(quick: bool, example: Path, home: Path) -> None:
    """Run the whole loop on this machine and write a report."""
    from tuneloop.cli.demo import run

    if not (example / "recipe.yaml").is_file():
        raise click.UsageError(
            f"{example} holds no recipe.yaml: the demo trains what comes with tuneloop's repository; cd there, or name "
            "that folder's examples/python-helper with --example"
        )
    run(example, home, quick=quick)


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | bool | None) else str(value)


VERBS = (config, up, demo)
