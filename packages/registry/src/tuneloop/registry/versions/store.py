"""Versions live in MLflow (models, versions, metrics, artifacts); this module speaks to it, and `foreign` for it.

Importing it costs about 2 s (MLflow); everything else in the registry stays light. Nothing is created in MLflow before
the folder has been checked, so a refused publish leaves nothing behind.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from tuneloop.registry.aliases.accounting import NAMES, Aliases
from tuneloop.registry.errors import Conflict, InvalidInput, NotFound, Unavailable
from tuneloop.registry.files import write_atomically
from tuneloop.registry.nouns import ModelName, Noun, Route, Version, version_name
from tuneloop.registry.paging import Ask, Page, cursor_at
from tuneloop.registry.settings import RegistrySettings, first_line, shown_url, without_password
from tuneloop.registry.versions.artifacts import check_publishable, fetched_name, folder_digest
from tuneloop.registry.versions.foreign import Foreign, brought
from tuneloop.registry.versions.signing.policy import SIGNATURE, Signing
from tuneloop.registry.versions.sources import MlflowRun, MlflowVersion
from tuneloop.registry.versions.tag import VERSION_TAG, ours, version_of

_log = logging.getLogger(__name__)
_REQUEST_TAG = "tuneloop.request_id"
_MODEL_TAG = "tuneloop.model"
_ARTIFACT = "model"
_PAGE = 1_000  # versions a call
_SIGNATURES = "signature"
P = ParamSpec("P")
R = TypeVar("R")


def _asking(ask: Callable[P, R]) -> Callable[P, R]:
    """MLflow's own errors become ours: what is missing is NotFound, everything else Unavailable."""

    @wraps(ask)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return ask(*args, **kwargs)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise NotFound(f"MLflow: {without_password(error.message)}") from error
            raise Unavailable(f"MLflow, in {ask.__name__}: {without_password(error.message)}") from error
        except SQLAlchemyError as error:  # an MLflow that is a database, and damaged or away
            raise Unavailable(f"MLflow, in {ask.__name__}: {first_line(error)}") from error

    return asked


class VersionDraft(Noun):
    """What a trainer says of a version before it has a number."""

    model: ModelName
    kind: Literal["adapter", "full"]
    base: str
    base_digest: str
    template_digest: str
    tokenizer_digest: str | None = None
    data_digest: str
    data_rows: int
    recipe_digest: str
    code_commit: str
    rank: int | None = None
    target_modules: tuple[str, ...] = ()
    parent: int | None = None
    request_id: str | None = None
    trained_by: str | None = None
    metrics: dict[str, float] = {}


class Versions:
    """Runs and versions over MLflow's own client; a tracking server works like the default SQLite file."""

    def __init__(self, settings: RegistrySettings, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._clock = clock
        self._connected: MlflowClient | None = None
        self._signing = Signing(settings, clock)

    @property
    def _client(self) -> MlflowClient:
        """Connected at the first call. No lock is held meanwhile (`cached_property` has one for all instances), so a
        thread that waits for an MLflow that is away holds up nobody."""
        if self._connected is None:
            self._connected = self._connect()
        return self._connected

    def _connect(self) -> MlflowClient:
        # Its schema migration logs a hundred lines at INFO on a fresh SQLite file.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        mlflow.set_tracking_uri(self._settings.mlflow)
        mlflow.set_registry_uri(self._settings.mlflow)
        try:
            if self._settings.mlflow.startswith("sqlite:///"):
                Path(self._settings.mlflow.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            client = MlflowClient(self._settings.mlflow, self._settings.mlflow)
            client.search_model_versions(
                "name = 'tuneloop'", max_results=1
            )  # reads next to nothing, however much is there
        except MlflowException as error:
            raise Unavailable(
                f"MLflow at {shown_url(self._settings.mlflow)}: {without_password(error.message)}; "
                "`tuneloop config` shows mlflow_uri"
            ) from error
        except (SQLAlchemyError, ImportError, OSError) as error:  # damaged, of an unknown kind, or nowhere
            where = shown_url(self._settings.mlflow)
            raise Unavailable(f"MLflow at {where}: {first_line(error)}; `tuneloop config` shows mlflow_uri") from error
        return client

    @_asking
    def start_run(self, model: str, *, name: str, params: Mapping[str, str | int | float | bool]) -> str:
        """Begin an MLflow run in the experiment named after the model; returns its id."""
        experiment = self._client.get_experiment_by_name(model)
        where = self._settings.artifacts
        location = f"{where}/{model}" if where else None
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(model, artifact_location=location)
        )
        run = self._client.create_run(experiment_id, run_name=name)
        for key, value in params.items():
            self._client.log_param(run.info.run_id, key, value)
        return str(run.info.run_id)

    @_asking
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step, in one call."""
        now_ms = int(self._clock().timestamp() * 1000)
        self._client.log_batch(
            run_id, metrics=[Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        )

    @_asking
    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) pairs in order of step."""
        return sorted((point.step, point.value) for point in self._client.get_metric_history(run_id, key))

    @_asking
    def run_metrics(self, run_id: str) -> dict[str, float]:
        """The last value of every metric of a run."""
        return dict(self._client.get_run(run_id).data.metrics)

    @_asking
    def log_file(self, run_id: str, path: Path, folder: str = "lineage") -> None:
        """Keep a file with a run, under `folder/`."""
        self._client.log_artifact(run_id, str(path), folder)

    @contextmanager
    def fetched_file(self, run_id: str, path: str) -> Iterator[Path]:
        """A file or folder kept with a run, on this machine for as long as the block runs.

        Raises:
            NotFound: the run has no such file.
            Unavailable: it has, and the file cannot be fetched; or the run's files cannot be seen.
        """
        with ExitStack() as until_read:
            try:
                scratch = until_read.enter_context(tempfile.TemporaryDirectory(prefix="tuneloop-fetch-"))
                found = self._download(run_id, path, scratch)
            except (MlflowException, OSError) as error:  # MLflow calls a full disk, too, a file that does not exist
                if self._lacks(run_id, path):
                    raise NotFound(f"MLflow run {run_id} has no file {path}") from None
                raise Unavailable(
                    f"MLflow run {run_id}: {path} cannot be fetched: {without_password(str(error))}; see whether its "
                    f"artifact store answers and {tempfile.gettempdir()} has room"
                ) from error
            yield found

    @_asking
    def _lacks(self, run_id: str, path: str) -> bool:
        """Whether the run's files can be listed and this one is not among them; none at all: their store is away."""
        try:
            if not self._client.list_artifacts(run_id):
                return False
            folder = path.rpartition("/")[0] or None
            return path not in {kept.path for kept in self._client.list_artifacts(run_id, folder)}
        except OSError:
            return False

    def _download(self, run_id: str, path: str, into: str) -> Path:
        return Path(
            mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=path, dst_path=into, tracking_uri=self._settings.mlflow
            )
        )

    @_asking
    def end_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Close a run; one that somebody deleted, or that this MLflow never had, has ended already."""
        try:
            self._client.set_terminated(run_id, status)
        except MlflowException as error:
            if not self._is_gone(run_id):
                raise
            _log.warning(
                "run %s is not in MLflow, so it is not closed there: %s", run_id, without_password(error.message)
            )

    @_asking
    def publish(self, draft: VersionDraft, *, run_id: str, folder: Path) -> Version:
        """Store a folder as the next version of its model, with its lineage.

        Raises:
            InvalidInput: the folder holds something that may not be published.
            Conflict: the retraining request already has a version.
        """
        check_publishable(folder)
        self._expect_first(draft)
        digest = folder_digest(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with self._signed(folder) as (key, signature):  # before anything is stored: without a key nothing is published
            self._client.log_artifacts(run_id, str(folder), _ARTIFACT)
            self._client.log_artifact(run_id, str(signature), _SIGNATURES)
        try:
            self._client.create_registered_model(draft.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._client.set_registered_model_tag(draft.model, _MODEL_TAG, "1")
        fields = draft.model_dump(mode="json") | {
            "run_id": run_id,
            "artifact_digest": digest,
            "artifact_bytes": size,
            "signed_by": key,
            "created_at": self._clock().isoformat(),
        }
        tags = {VERSION_TAG: json.dumps(fields)} | ({_REQUEST_TAG: draft.request_id} if draft.request_id else {})
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{_ARTIFACT}"
        self._expect_first(draft)  # storing takes its time: whose lease ran out meanwhile comes second
        made = self._client.create_model_version(draft.model, source=source, run_id=run_id, tags=tags)
        return version_of(made)

    @_asking
    def get(self, model: str, number: int) -> Version:
        """One version.

        Raises:
            NotFound: the model or the version does not exist; the message names those that do.
        """
        try:
            return version_of(self._client.get_model_version(model, str(number)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            known = [version.name for version in self.all(model, newest=5)]
            raise NotFound(
                f"{version_name(model, number)} does not exist; known: {', '.join(known)}"
                if known
                else f"no model named {model!r}; `tuneloop models` lists them"
            ) from None

    @_asking
    def all(self, model: str, *, newest: int | None = None) -> list[Version]:
        """A model's versions, the newest first: so many of them, or every one."""
        return self._search(f"name = '{_safe(model)}'", newest)

    @_asking
    def page(self, model: str, ask: Ask) -> Page[Version]:
        """Every version of a model, the newest first, page by page."""
        last, found = ask.after(VERSION_TAG, int), list[Version]()
        while True:
            below = f" AND version_number < {last[0]}" if last else ""
            condition, wanted = f"name = '{_safe(model)}'{below}", ask.limit + 1 - len(found)
            made = self._client.search_model_versions(condition, wanted, order_by=["version_number DESC"])
            found += ours(made)
            if len(found) > ask.limit:
                shown = found[: ask.limit]
                return Page(shown, cursor_at(VERSION_TAG, [shown[-1].version]))
            if len(made) < wanted:
                return Page(found, None)
            last = [int(made[-1].version)]

    @_asking
    def models(self) -> list[str]:
        """The names of the registered models that hold versions of ours; others in the same MLflow are left out."""
        names, token = [], None
        while True:
            page = self._client.search_registered_models(
                f"tags.`{_MODEL_TAG}` = '1'", max_results=100, page_token=token
            )
            names += [found.name for found in page]
            if not (token := page.token):
                return sorted(names)

    @_asking
    def for_request(self, request_id: str) -> Version | None:
        """The version a retraining request made, if it made one."""
        return next(iter(self._search(f"tags.`{_REQUEST_TAG}` = '{_safe(request_id)}'")), None)

    @_asking
    def foreign(self, source: MlflowRun | MlflowVersion, into: Path, within: Path | None = None) -> Foreign:
        """A folder that somebody put into MLflow; nothing of it has been looked at.

        Args:
            source: what is meant.
            into: an empty folder of the caller's; what another machine keeps is fetched there.
            within: outside it nothing on this machine is read; None: wherever its run says that it is.

        Raises:
            InvalidInput: it lies outside the run that is named, or outside `within`.
            NotFound: there is no such run, version or folder.
        """
        try:
            return brought(self._client, source, into, within)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise InvalidInput(
                f"{source.name}: MLflow can have no such thing: {without_password(error.message)}"
            ) from None

    def check_key(self) -> None:
        """See that what will be published can be signed, before hours are spent on making it.

        Raises:
            InvalidInput: the key that the settings name is none to sign with.
        """
        self._signing.check_key()

    @_asking
    def sign(self, version: Version, root: Path) -> Version:
        """Sign a version's files, as they were published, with this machine's key; it replaces the signature it had.

        Args:
            version: the version.
            root: where fetched files are kept, as for `fetch`.

        Raises:
            InvalidInput: the files are not those that were published, or there is no key to sign with.
        """
        with self._signed(self._files(version, root)) as (key, signature):
            self._client.log_artifact(version.run_id, str(signature), _SIGNATURES)
        signed = version.model_copy(update={"signed_by": key})
        fields = signed.model_dump(mode="json", exclude={"version"})
        self._client.set_model_version_tag(version.model, str(version.version), VERSION_TAG, json.dumps(fields))
        return signed

    def fetch(self, version: Version, root: Path) -> Path:
        """The version's files in `root/<digest>`, downloaded once, verified each time; they appear whole or not at all.

        Raises:
            InvalidInput: the files are not those that were published, or nobody trusted here has signed them.
        """
        folder = self._files(version, root)
        signature = None if version.signed_by is None else self._signature(version, root, version.signed_by)
        try:
            self._signing.verify(folder, signature, version.name)
        except InvalidInput:
            if signature is not None:
                signature.unlink(missing_ok=True)  # another may be there meanwhile: it is asked for again
            raise
        return folder

    @contextmanager
    def _signed(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """(the key's name, the signature of a folder), the latter for as long as the block runs."""
        with tempfile.TemporaryDirectory(prefix="tuneloop-sign-") as scratch:
            signature = Path(scratch) / SIGNATURE
            yield self._signing.sign(folder, signature), signature

    def _signature(self, version: Version, root: Path, key: str) -> Path:
        """The version's signature beside its fetched files; asks MLflow once."""
        kept = root / f"{fetched_name(version)}.{key}.sig"
        if not kept.is_file():
            try:
                with self.fetched_file(version.run_id, f"{_SIGNATURES}/{SIGNATURE}") as found:
                    write_atomically(kept, found.read_bytes())
            except NotFound:
                raise InvalidInput(
                    f"{version.name} was signed by key {key}, and its signature is gone from MLflow; do not serve it: "
                    "see who has written to the artifact store, then "
                    f"`tuneloop sign {version.name} --by YOU --reason WHY`"
                ) from None
        return kept

    def _files(self, version: Version, root: Path) -> Path:
        target = root / fetched_name(version)
        if target.is_dir():
            if folder_digest(target) == version.artifact_digest:
                return target
            _log.warning("%s: %s is damaged; fetching it again", version.name, target)
            shutil.rmtree(target)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
            try:
                folder = self._download(version.run_id, _ARTIFACT, scratch)
            except (MlflowException, OSError) as error:
                why = without_password(str(error))
                raise Unavailable(f"{version.name}: its files cannot be fetched from MLflow: {why}") from error
            check_publishable(folder)
            if (found := folder_digest(folder)) != version.artifact_digest:
                raise InvalidInput(
                    f"{version.name}: fetched files have digest {found}, published was {version.artifact_digest}; "
                    "do not serve it"
                )
            try:
                folder.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was first, with the same verified content
                    raise
        return target

    @_asking
    def mirror(self, route: Route) -> None:
        """Let MLflow's aliases follow the route: `champion` for the stable arm, `challenger` for one with a share."""
        wanted = Aliases.of(route)
        self._point(route.model, "champion", wanted.champion)
        self._point(route.model, "challenger", wanted.challenger)

    def _point(self, model: str, alias: str, version: int | None) -> None:
        """Move an alias where it is not there already: MLflow reads all versions of the model to move or remove one."""
        try:
            there = self._pointed(model, alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            there = None
        if version is None and there is not None:
            self._client.delete_registered_model_alias(model, alias)
        elif version != there:
            self._client.set_registered_model_alias(model, alias, str(version))

    @_asking
    def aliases(self, model: str) -> dict[str, int]:
        """Those of the two that mirror a route which are set, and their versions; the cost is that of two short calls.

        Raises:
            NotFound: MLflow has no such model.
        """
        asked = {alias: self._pointed(model, alias) for alias in NAMES}
        return {alias: version for alias, version in asked.items() if version is not None}

    def _pointed(self, model: str, alias: str) -> int | None:
        """What an alias names. Asking for the model instead would read all its versions."""
        try:
            return int(self._client.get_model_version_by_alias(model, alias).version)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return None  # it points nowhere

    def _expect_first(self, draft: VersionDraft) -> None:
        if draft.request_id is not None and (existing := self.for_request(draft.request_id)) is not None:
            raise Conflict(f"retraining {draft.request_id} already made {existing.name}; a request makes one version")

    def _is_gone(self, run_id: str) -> bool:
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return True

    def _search(self, condition: str, newest: int | None = None) -> list[Version]:
        """By number, the newest first: in MLflow's own order, and by its tokens, each page costs what they all hold."""
        found, below, size = list[Version](), "", min(newest or _PAGE, _PAGE)
        while True:
            page = self._client.search_model_versions(condition + below, size, order_by=["version_number DESC"])
            found += ours(page)
            if not page.token or (newest is not None and len(found) >= newest):
                return found[:newest]
            below = f" and version_number < {page[-1].version}"


def _safe(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise InvalidInput(f"{text!r} is not a name")
    return text
