"""For how long each signal of a champion was looked at and told nothing: one that is blind looks healthy.

A window that has too little of something ("not enough data") leaves a signal as it was, and canaries that cannot be
read, or have no baseline, raise nothing. What only users can give (thumbs, corrections, questions that speak of groups)
counts once they have given it: before, nothing is missed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.reference import champion_since
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import (
    BAD_CORRECTIONS,
    CORRECTION_BLEU,
    CORRECTION_PERPLEXITY,
    PARITY,
    REFERENCE_BLEU,
    SERVED_MODEL_CHANGE,
    THUMBS_DOWN,
    windowed,
)
from tuneloop.registry import Registry
from tuneloop.registry.errors import TuneloopError, Unreadable

log = logging.getLogger("tuneloop.monitor")
EVERY_S = 60.0
_OF_USERS = frozenset({THUMBS_DOWN, CORRECTION_PERPLEXITY, CORRECTION_BLEU, BAD_CORRECTIONS, PARITY})


def unjudged_s(registry: Registry, settings: MonitorSettings, model: str) -> dict[str, float]:
    """By signal of a model's champion: seconds from the last time it was judged, or since the version is champion,
    until it was last looked at; canaries are to be looked at always. 0: the newest look judged it.

    Raises:
        Unreadable: one of the model's routes is damaged.
    """
    history = registry.routes.history(model).whole()
    version, since, now = history[0].champion, champion_since(history), registry.clock()
    looks = registry.episodes.looks(model, version)
    found = {}
    for signal in windowed(settings):
        look = looks.get(signal)
        if look is not None and (look.judged_at is not None or signal not in _OF_USERS):
            found[signal] = _between(_later(look.judged_at, since), look.at)
    read = [SERVED_MODEL_CHANGE] if settings.canary_every_s else []
    read += [REFERENCE_BLEU] if model in settings.reference_answers else []
    for signal in read:
        look = looks.get(signal)
        # A check that was made as it should be is due again, once traffic has earned it: nothing is blind meanwhile.
        judged = look is not None and look.judged_at == look.at
        found[signal] = 0.0 if judged else _between(_later(look.judged_at if look else None, since), now)
    return found


def _later(judged_at: datetime | None, since: datetime) -> datetime:
    return since if judged_at is None else max(judged_at, since)


def _between(start: datetime, end: datetime) -> float:
    return max(timedelta(), end - start).total_seconds()


class Unjudged:
    """Sets the gauge of every model, beside the passes: it is no reason to hold one up."""

    def __init__(
        self, registry: Registry, settings: MonitorSettings, metrics: Metrics, stopping: Callable[[], bool]
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._stopping = stopping

    def run(self, wait: Callable[[float], object]) -> None:
        """Round after round until `stopping`; nothing that goes wrong ends it."""
        while not self._stopping():
            try:
                self.round()
            except TuneloopError as error:
                log.warning("for how long signals were not judged, trying again in %.0f s: %s", EVERY_S, error)
            wait(EVERY_S)

    def round(self) -> None:
        """Look at every model once.

        Raises:
            Unavailable: the database does not answer.
        """
        routes = self._registry.routes.current_all()  # the pass tells of those that cannot be read
        found: dict[tuple[str, str], float] = {}
        for model in routes:
            try:
                seconds = unjudged_s(self._registry, self._settings, model)
            except Unreadable as error:
                log.error("for how long signals of %s were not judged is not known: %s", model, error)
            else:
                found |= {(model, signal): value for signal, value in seconds.items()}
        self._metrics.unjudged(found)
