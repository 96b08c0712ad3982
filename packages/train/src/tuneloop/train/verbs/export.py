"""`tuneloop export`: a version as a folder for other systems."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from tuneloop.registry.printing import emit, json_option, table

if TYPE_CHECKING:
    from tuneloop.train.export.run import Exported


@click.command()
@click.argument("version")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="A folder that does not exist yet.")
@click.option("--merge", is_flag=True, help="Merge the adapter into its unquantised base: a model of its own.")
@click.option(
    "--quantize",
    type=click.Choice(["int8", "int4"]),
    help="Quantise for inference, merging an adapter first: int8 halves the weights, int4 quarters them.",
)
@json_option
def export(version: str, to: Path, merge: bool, quantize: Literal["int8", "int4"] | None, as_json: bool) -> None:
    """Write VERSION (MODEL@NUMBER) to a folder for serving elsewhere, with the size and the perplexity lost."""
    from tuneloop.registry import Registry
    from tuneloop.registry.nouns import parse_version_name
    from tuneloop.train.screen import Screen
    from tuneloop.train.settings import TrainSettings, hush_libraries, share_cores

    hush_libraries()
    share_cores(with_an_engine=False)
    model, number = parse_version_name(version)
    threads = TrainSettings.load().threads
    with Registry.open() as registry:
        found = registry.versions.get(model, number)
        from tuneloop.train.export.run import export_version
        from tuneloop.train.tuning.models import prepare_process

        prepare_process(threads)
        screen = Screen(sys.stderr if as_json else sys.stdout)
        made = export_version(registry, found, to, merge=merge, quantize=quantize, screen=screen)
    said = asdict(made) | {"folder": str(made.folder.resolve())}
    emit(said, as_json, _text(made))


def _text(made: Exported) -> str:
    size = f"{made.size_bytes / 1e6:,.1f} MB"
    if made.quantization:
        size += (
            f", {made.size_bytes / made.whole_bytes:.0%} of the unquantised weights' {made.whole_bytes / 1e6:,.1f} MB"
        )
    rows = [
        (
            name,
            f"{loss.published:.3f}",
            f"{loss.exported:.3f}",
            f"{loss.difference.estimate:+.4f} [{loss.difference.low:+.4f}, {loss.difference.high:+.4f}]",
        )
        for name, loss in made.losses.items()
    ]
    head = ("held-out set", "perplexity as published", "as exported", "NLL difference (95 % interval)")
    shown = f"{table(head, rows)}\n\n" if rows else ""
    if not made.whole:
        return f"{shown}{made.version} is in {made.folder} ({size})"
    command = f"tuneloop engine --base {made.folder} --max-loras 0 --id NAME --port PORT"
    return (
        f"{shown}{made.version} is in {made.folder} ({size}); serve it with `{command}`, and ask that port for the "
        f"model {made.folder.name}"
    )
