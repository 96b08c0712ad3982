"""Trackers beside MLflow: the same metrics, by one line of a recipe (`run.trackers: [wandb]`)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tuneloop.registry.errors import InvalidInput

Log = Callable[[Mapping[str, float], int], None]


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed, before anything runs.

    Raises:
        InvalidInput: with what to install.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(f"run.trackers: {missing[0]} is not installed; pip install {missing[0]}, or remove it")


@contextmanager
def tracked_too(names: Sequence[str], project: str, run_id: str, params: Mapping[str, Any], log: Log) -> Iterator[Log]:
    """`log`, and every tracker that was asked for, for as long as the block runs.

    A tracker's run has the id of the MLflow run, so that one that was cut goes on there too.
    """
    with ExitStack() as open_runs:
        others: list[Log] = []
        for name in names:
            tracker = importlib.import_module(name)
            made = tracker.init(project=project, id=run_id, resume="allow", config=dict(params))
            run = open_runs.enter_context(made)
            others.append(lambda metrics, step, run=run: run.log(dict(metrics), step=step))  # type: ignore[misc]

        def everywhere(metrics: Mapping[str, float], step: int) -> None:
            log(metrics, step)
            for other in others:
                other(metrics, step)

        yield everywhere
