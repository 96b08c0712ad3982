"""MLflow's client, connected when it is first needed, and its errors as ours."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from mlflow.tracking._model_registry.client import ModelRegistryClient
from sqlalchemy.exc import SQLAlchemyError

from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.registry.settings import RegistrySettings, first_line, shown_url, without_password
from tuneloop.registry.versions.tables import Tables

P = ParamSpec("P")
R = TypeVar("R")


def asking(ask: Callable[P, R]) -> Callable[P, R]:
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


class Connected:
    """What speaks to one MLflow; a tracking server works like the default SQLite file."""

    def __init__(self, settings: RegistrySettings, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._clock = clock
        self._connected: MlflowClient | None = None

    @property
    def _client(self) -> MlflowClient:
        """Connected at the first call. No lock is held meanwhile (`cached_property` has one for all instances), so a
        thread that waits for an MLflow that is away holds up nobody."""
        if self._connected is None:
            self._connected = self._connect()
        return self._connected

    @property
    def _changes(self) -> ModelRegistryClient:
        """What MLflow's client itself changes models through. The client reads every version of a model before it does,
        only to see that the name is no prompt's: `_expect_no_prompt` sees that for next to nothing."""
        changes: ModelRegistryClient = self._client._get_registry_client()
        return changes

    @property
    def _tables(self) -> Tables | None:
        """MLflow's tables; None behind a tracking server."""
        store = self._changes.store
        return Tables(store) if isinstance(store, SqlAlchemyStore) else None

    def _expect_no_prompt(self, model: str) -> None:
        """See that MLflow has no prompt of a model's name; it keeps both in one place.

        Raises:
            InvalidInput: it has.
        """
        condition = f"name = '{model}' AND tags.`mlflow.prompt.is_prompt` = 'true'"
        if self._client.search_registered_models(condition, max_results=1):
            raise InvalidInput(
                f"{model!r} is a prompt in MLflow; give the model another name, or rename the prompt there"
            )

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
