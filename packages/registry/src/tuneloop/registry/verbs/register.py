"""`tuneloop register`."""

from __future__ import annotations

from pathlib import Path

import click

from tuneloop.registry.facade import Registry
from tuneloop.registry.printing import by_option, emit, json_option, reason_option
from tuneloop.registry.versions.sources import Folder, MlflowRun, MlflowVersion, Source


@click.command()
@click.argument("model")
@click.option("--folder", type=click.Path(path_type=Path), help="A folder that save_pretrained wrote.")
@click.option("--mlflow", "version", metavar="NAME/VERSION", help="A version in MLflow that tuneloop did not publish.")
@click.option("--run", "run_id", metavar="RUN_ID", help="A run in MLflow.")
@click.option("--path", help="The folder below the run's artifacts (default: model), or below the version's files.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The folder of the base it was trained on; whole weights may come without.",
)
@by_option
@reason_option
@json_option
def register(
    model: str,
    folder: Path | None,
    version: str | None,
    run_id: str | None,
    path: str | None,
    base: Path | None,
    by: str,
    reason: str,
    as_json: bool,
) -> None:
    """Make what was trained elsewhere, an adapter or whole weights, the next version of MODEL.

    It is looked at first: safetensors and text only; of an adapter its rank, of whole weights that they are all there;
    that base and chat template are those of the model, and that a tokenizer it brings along is the base's. What is
    refused leaves nothing behind; what is accepted is signed, and waits for an approval.
    """
    from tuneloop.registry.versions.registering import register as registered

    source = _source(folder, version, run_id, path)
    with Registry.open(begin=True) as registry:
        made = registered(registry, model, source, base=base, by=by, reason=reason)
    text = (
        f"{made.name} is registered, {made.artifact_digest}, signed by key {made.signed_by}; "
        f"next: `tuneloop approve {made.name} --by SOMEBODY --reason WHY`"
    )
    emit(made, as_json, text)


def _source(folder: Path | None, version: str | None, run_id: str | None, path: str | None) -> Source:
    if [folder, version, run_id].count(None) != 2:
        raise click.UsageError("say where it is: one of --folder, --mlflow and --run")
    if folder is not None:
        if path is not None:
            raise click.UsageError("--path goes with --mlflow and --run; give --folder the folder itself")
        return Folder(folder)
    if version is not None:
        return MlflowVersion.named(version, path or ".")
    assert run_id is not None
    return MlflowRun(run_id, path or "model")
