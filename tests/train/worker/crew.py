"""What tests of the worker file, start and look at."""

from __future__ import annotations

import mlflow

from tests_support import retraining_request
from tuneloop.registry import Registry
from tuneloop.registry.nouns import RetrainingRequest
from tuneloop.train.retraining.worker import Worker
from tuneloop.train.screen import Screen
from tuneloop.train.settings import WorkerSettings
from tuneloop.train.stopping import StopFlag

COMMIT = "0" * 40  # of the code, whatever is changed in the tree the tests run from
MAIL = "ann.example@python.org"


def filed(registry: Registry, **changes: object) -> RetrainingRequest:
    request = retraining_request(registry.clock(), **({"recipe": "bot@1"} | changes))
    registry.retraining.file(request, by="monitor")
    return registry.retraining.approve(request.id, by="test", reason="drift is real")


def worker(registry: Registry, lease_s: float = 60.0, screen: Screen | None = None) -> Worker:
    settings = WorkerSettings(id="w", poll_s=0.1, lease_s=lease_s)
    return Worker(registry, settings, threads=0, screen=screen or Screen(), stop=StopFlag())


def run_states(registry: Registry) -> list[str]:
    """The states of all MLflow runs of `bot`, the oldest first."""
    client = mlflow.MlflowClient(registry.settings.mlflow)
    experiment = client.get_experiment_by_name("bot")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run.info.status for run in runs]
