"""Asking MLflow within a time of our own.

MLflow's client tries again for minutes (seven times, and up to two minutes each; a database of its own for as long).
A training may wait that long for its results to be kept. Whoever changes a route may not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from tuneloop.registry.errors import Unavailable
from tuneloop.registry.settings import shown_url

if TYPE_CHECKING:
    from tuneloop.registry.facade import Registry

LOOKUP_TIMEOUT_S = 20.0
T = TypeVar("T")


def mlflow_within(registry: Registry, ask: Callable[[], T], timeout_s: float) -> T:
    """What `ask` returns or raises; it runs in a thread that does not keep the process alive.

    Raises:
        Unavailable: MLflow did not answer within the time.
    """
    _ = registry.versions  # importing it takes 2 s, which are not MLflow's to answer for
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 (it is raised again where it was asked)
            answer.set_exception(error)

    threading.Thread(target=run, name="mlflow", daemon=True).start()
    try:
        return answer.result(timeout_s)
    except TimeoutError:
        raise Unavailable(
            f"MLflow at {shown_url(registry.settings.mlflow)} did not answer within {timeout_s:g} s; "
            "`tuneloop config` shows mlflow_uri"
        ) from None
