"""Processes of their own for tests, forked from one that has everything loaded and nothing open; some are killed.

Whoever forks a process that has connections open hands these on, and two then speak over one. So nothing here is forked
from the test's own process: a server of `multiprocessing` is, which imports once what each would take seconds for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

_CHANGES = ("INSERT", "UPDATE", "DELETE")
_WROTE = "wrote in this transaction"
_LONGEST_S = 300  # for which one that does not end is waited for
_LOADED = [
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "psycopg",
    "pytest",
    "tuneloop.registry.aliases.watch",
    "tuneloop.registry.rollouts.controller",
    "tuneloop.registry.versions.registering",
    "tuneloop.registry.versions.store",
]


def forking() -> ForkServerContext:
    """The server, which starts with the first process; what processes share is made by it too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    return context


def begun(target: Callable[..., object], *args: Any) -> BaseProcess:
    """A process that runs a module's function; it is ended with the test's own."""
    from mlflow.store.db import utils

    process = forking().Process(target=_run, args=(utils._get_latest_schema_revision(), target, args), daemon=True)
    process.start()
    return process


def _run(mlflow_schema: str, target: Callable[..., object], args: tuple[Any, ...]) -> None:
    """What each process would find out again by reading all of MLflow's migrations, it is told."""
    from mlflow.store.db import utils

    utils._get_latest_schema_revision = lambda: mlflow_schema
    target(*args)


def ended(process: BaseProcess, meanwhile: Callable[[], object] = lambda: None) -> int | None:
    """The exit code of a process (killed: the signal's, negative), once it has ended; meanwhile life goes on."""
    deadline = time.monotonic() + _LONGEST_S
    while process.is_alive() and time.monotonic() < deadline:
        meanwhile()
        process.join(0.03)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"a process had not ended after {_LONGEST_S} s")
    return process.exitcode


def die() -> None:
    """As somebody ends a process with kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # whoever does not die of it at once does nothing more


def die_before_write(number: int) -> None:
    """From here on this process is killed right before its `number`-th write, the first being 1.

    A write is a statement that changes rows, or the commit of a transaction that did, in whatever database: MLflow's
    too. So there is nothing between two of them by which what is stored could differ.
    """
    lock, seen = threading.Lock(), iter(range(1, 1_000_000))

    def write() -> None:
        with lock:
            if next(seen) == number:
                die()

    def execute(connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.lstrip().upper().startswith(_CHANGES):
            connection.info[_WROTE] = True
            write()

    def commit(connection: Connection) -> None:
        if connection.info.pop(_WROTE, False):
            write()

    sa.event.listen(Engine, "before_cursor_execute", execute)
    sa.event.listen(Engine, "commit", commit)
    sa.event.listen(Engine, "rollback", lambda connection: connection.info.pop(_WROTE, None))
