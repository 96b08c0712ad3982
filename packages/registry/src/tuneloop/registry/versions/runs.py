"""Runs in MLflow: what a training or a registration notes of itself, and the files it keeps."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from tuneloop.registry.errors import NotFound, Unavailable
from tuneloop.registry.settings import without_password
from tuneloop.registry.versions.connected import Connected, asking

_EXISTS = "RESOURCE_ALREADY_EXISTS"
_REGISTERS_TAG = "tuneloop.registers"
_log = logging.getLogger(__name__)


class Runs(Connected):
    """Begins and ends runs, and reads and writes what they keep."""

    @asking
    def start_run(
        self, model: str, *, name: str, params: Mapping[str, str | int | float | bool], registers: str | None = None
    ) -> str:
        """Begin an MLflow run in the experiment named after the model; returns its id.

        Args:
            model: its name.
            name: of the run.
            params: what it is started with.
            registers: the digest of the files that it registers, by which `registrations` finds it.
        """
        tags = None if registers is None else {_REGISTERS_TAG: registers}
        run = self._client.create_run(self._experiment(model), run_name=name, tags=tags)
        for key, value in params.items():
            self._client.log_param(run.info.run_id, key, value)
        return str(run.info.run_id)

    @asking
    def registrations(self, model: str, digest: str) -> dict[str, str]:
        """The runs that were begun to register files of this digest, and MLflow's word for how far each is."""
        experiment = self._client.get_experiment_by_name(model)
        if experiment is None:
            return {}
        found = self._client.search_runs([experiment.experiment_id], f"tags.`{_REGISTERS_TAG}` = '{digest}'")
        return {str(run.info.run_id): str(run.info.status) for run in found}

    @asking
    def registering(self, model: str) -> set[str]:
        """The digests of the files of a model that runs were begun to register and have not ended."""
        experiment = self._client.get_experiment_by_name(model)
        if experiment is None:
            return set()
        going_on = f"attributes.status = 'RUNNING' AND tags.`{_REGISTERS_TAG}` LIKE 'sha256:%'"
        found = self._client.search_runs([experiment.experiment_id], going_on)
        return {str(run.data.tags[_REGISTERS_TAG]) for run in found}

    @asking
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step, in one call."""
        now_ms = int(self._clock().timestamp() * 1000)
        self._client.log_batch(
            run_id, metrics=[Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        )

    @asking
    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) pairs in order of step."""
        return sorted((point.step, point.value) for point in self._client.get_metric_history(run_id, key))

    @asking
    def run_metrics(self, run_id: str) -> dict[str, float]:
        """The last value of every metric of a run."""
        return dict(self._client.get_run(run_id).data.metrics)

    @asking
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

    @asking
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

    @asking
    def _lacks(self, run_id: str, path: str) -> bool:
        """Whether the run's files can be listed and this one is not among them; none at all: their store is away."""
        try:
            if not self._client.list_artifacts(run_id):
                return False
            folder = path.rpartition("/")[0] or None
            return path not in {kept.path for kept in self._client.list_artifacts(run_id, folder)}
        except OSError:
            return False

    def _experiment(self, model: str) -> str:
        """The id of the experiment named after a model; made where there is none."""
        if found := self._client.get_experiment_by_name(model):
            return str(found.experiment_id)
        where = self._settings.artifacts
        try:
            return str(self._client.create_experiment(model, artifact_location=f"{where}/{model}" if where else None))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(model) if error.error_code == _EXISTS else None
            if found is None:
                raise
            return str(found.experiment_id)  # somebody else was first

    def _download(self, run_id: str, path: str, into: str) -> Path:
        return Path(
            mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=path, dst_path=into, tracking_uri=self._settings.mlflow
            )
        )

    def _is_gone(self, run_id: str) -> bool:
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return True
