"""Files that somebody else put into MLflow, brought here to be looked at before they become a version.

Nothing of them is trusted. A store on this machine is not copied by MLflow, which follows links; what a version's
record points to outside its run is not read at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.registry.settings import without_password
from tuneloop.registry.versions.room import expect_room, listed_bytes
from tuneloop.registry.versions.sources import MlflowRun, MlflowVersion, on_this_machine
from tuneloop.registry.versions.tag import VERSION_TAG

_PROXIED = "mlflow-artifacts"  # the tracking server itself hands such files on; of a host, where one is named
_FIRST_EXPERIMENT = "0"  # made with the server itself, below its artifact root; no client can move it
_COMMIT_TAG = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Foreign:
    """A folder as MLflow holds it, and what its run says of how it was made."""

    folder: Path
    below: Path | None = None  # where it was found on this machine, the folder of its run; None: it was fetched
    code_commit: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def brought(client: MlflowClient, source: MlflowRun | MlflowVersion, into: Path, within: Path | None) -> Foreign:
    """A folder of MLflow's.

    Args:
        client: of the MLflow that has it.
        source: what is meant.
        into: an empty folder; what another machine keeps is fetched there.
        within: outside it nothing on this machine is read, and no host is asked but the tracking server
            and its own artifact store; None: it is read wherever its run says that it is.

    Raises:
        InvalidInput: its files, or the path, lie outside the run that is named, or outside `within`.
        NotFound: there is no such folder.
        Unavailable: it cannot be fetched, or there is no room for it.
        MlflowException: MLflow has no such run or version, or does not answer.
    """
    path = _inside(source.path)
    if isinstance(source, MlflowRun):
        run = client.get_run(source.run_id)
        uri = _artifacts(run)
    else:
        made = client.get_model_version(source.model, str(source.number))
        if VERSION_TAG in made.tags:
            raise InvalidInput(f"{source.name} is tuneloop's own {source.model}@{source.number} already")
        run = client.get_run(made.run_id) if made.run_id else None
        uri = str(client.get_model_version_download_uri(source.model, str(source.number)))
    roots = [_artifacts(run)] if run else []
    kind, _, rest = uri.partition(":/")
    if kind == "runs" and run:
        uri = f"{_artifacts(run)}/{_inside(rest.partition('/')[2])}"
    elif kind == "models":  # a logged model: it has a folder of its own
        uri = str(client.get_logged_model(rest.partition("/")[0]).artifact_location).rstrip("/")
        roots.append(uri)
    uri = uri if path == "." else f"{uri}/{path}"
    root = next((root for root in roots if _is_below(uri, root)), None)
    if root is None:
        raise InvalidInput(
            f"{source.name}: its files lie in {without_password(uri)}, outside the run that it names; bring them here, "
            "look at them, and register them with --folder"
        )
    if within is not None and on_this_machine(uri) is None and not is_own(uri, str(client.tracking_uri), _root(client)):
        raise InvalidInput(
            f"{source.name}: its files lie at {without_password(uri)}, which is not MLflow's own artifact store, and "
            "whoever writes to MLflow could name any host; log them to the tracking server's store, or register it "
            "with the verb"
        )
    folder, below = _found(client, uri, root, into)
    if below is not None and within is not None and not folder.is_relative_to(within.resolve()):
        raise InvalidInput(
            f"{source.name}: its files lie on this machine outside {within}, and whoever writes to MLflow could name "
            "any folder; register it with the verb, on this machine"
        )
    if not _holds_something(folder):
        raise NotFound(f"{source.name}: there is no such folder in MLflow; its own interface shows what there is")
    data = run.data if run else None
    metrics = {str(name): float(value) for name, value in data.metrics.items()} if data else {}
    return Foreign(folder, below, data.tags.get(_COMMIT_TAG) if data else None, metrics)


def is_own(uri: str, tracking: str, root: str | None) -> bool:
    """Whether a URI of artifacts leads to where the tracking server keeps its own, and to no other host.

    Args:
        uri: what a run or a version names.
        tracking: of the server.
        root: its artifact root; None: it is not known, so only what the server hands on itself is its own.
    """
    named = urlsplit(uri)
    if named.scheme == _PROXIED and not named.netloc:
        return urlsplit(tracking).scheme in {"http", "https"}
    own = urlsplit(root or "")
    return bool(own.scheme) and (named.scheme, named.netloc) == (own.scheme, own.netloc)


def _root(client: MlflowClient) -> str | None:
    try:
        return str(client.get_experiment(_FIRST_EXPERIMENT).artifact_location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _artifacts(run: Any) -> str:
    return str(run.info.artifact_uri).rstrip("/")


def _inside(path: str) -> str:
    """A path that stays below where it begins."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise InvalidInput(f"{path!r} leads out of the run; name a folder below it")
    return str(pure)


def _holds_something(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(folder.iterdir())
    except (OSError, ValueError):  # no folder can have that name
        return False


def _found(client: MlflowClient, uri: str, root: str, into: Path) -> tuple[Path, Path | None]:
    """The folder on this machine, without a link in its path, and the run's that holds it; or it is fetched."""
    here, there = on_this_machine(uri), on_this_machine(root)
    if here is not None and there is not None:
        return here.resolve(), there.resolve()
    tracking = str(client.tracking_uri)
    try:
        told = listed_bytes(get_artifact_repository(uri, tracking_uri=tracking).list_artifacts, None)
        expect_room(told or 0, into, f"{without_password(uri)}: what it holds")
        fetched = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into), tracking_uri=tracking)
    except Unavailable:
        raise
    except OSError as error:  # requests' errors are, too
        raise Unavailable(
            f"{without_password(uri)} cannot be fetched: {without_password(str(error))}; see whether it is there, and "
            f"{into.parent} has room"
        ) from error
    return Path(fetched), None


def _is_below(uri: str, root: str) -> bool:
    here, there = on_this_machine(uri), on_this_machine(root)
    if here is not None and there is not None:
        return here.resolve().is_relative_to(there.resolve())
    return ".." not in uri.split("/") and (uri == root or uri.startswith(f"{root}/"))
