"""`tuneloop engine`: one vLLM with its agent, in the foreground; one line per event on standard output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--base", type=click.Path(path_type=str), help="Folder of the base model.")
@click.option("--version", help="A version of whole weights, MODEL@N, instead of a base with adapters.")
@click.option("--id", "id_", help="Name of this engine; default: host name and port.")
@click.option("--host", help="Address vLLM listens on (127.0.0.1); it has no authentication, keep it private.")
@click.option("--port", type=int, help="Port vLLM listens on (8101).")
@click.option("--advertise-url", help="How gateways reach it, when that differs.")
@click.option("--python", type=click.Path(path_type=str), help="Python of the engine environment.")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.")
@click.option("--max-loras", type=int, help="Adapter slots (6); one stays reserved. 0: the base alone.")
@click.option("--pin", "pins", multiple=True, help="A version, MODEL@N, that stays loaded without a route; repeat it.")
@click.option("--keep-cold", type=int, help="Adapters that left the routes and stay loaded while there is room (0).")
@click.option("--max-cpu-loras", type=int, help="Adapters kept in host memory (16).")
@click.option("--max-lora-rank", type=int, help="Highest rank of an adapter (16).")
@click.option("--tool-call-parser", help="How the base writes tool calls, by vLLM's name, such as hermes.")
@click.option("--max-model-len", type=int, help="Longest prompt and answer together, in tokens (1024).")
@click.option("--max-num-seqs", type=int, help="Requests run at a time (16).")
def engine(id_: str | None, pins: tuple[str, ...], **given: Any) -> None:
    """Run vLLM beside its agent, which keeps the adapters that the routes want."""
    from tuneloop.registry.settings import RegistrySettings
    from tuneloop.serve.engine.run import run_engine
    from tuneloop.serve.engine.settings import EngineSettings

    settings = EngineSettings.load(id=id_, pins=pins or None, **given)

    def say(event: str) -> None:
        click.echo(f"{settings.engine_id}: {event}")

    run_engine(settings, RegistrySettings.load(), start=Path.cwd(), say=say)
