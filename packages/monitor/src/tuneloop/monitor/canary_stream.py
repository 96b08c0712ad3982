"""One version's stream of canary scores, and how an engine is read for it: what baselines and checks share.

Every reading of a stream is a score; that of a baseline holds its rounds, and every later one names the baseline it was
held against. So what is known of a version is all in the registry, and monitors killed anywhere go on from there.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

import httpx
import numpy as np

from tuneloop.monitor.alerts import ended_by_person
from tuneloop.monitor.canaries import Round, canaries
from tuneloop.monitor.detectors import Outcome
from tuneloop.monitor.metrics import Metrics
from tuneloop.monitor.reading import read_texts
from tuneloop.monitor.reference import score_id
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import DETECTORS, SERVED_MODEL_CHANGE
from tuneloop.monitor.streams import last_scores
from tuneloop.registry import Registry
from tuneloop.registry.errors import NotFound
from tuneloop.registry.nouns import AlertEpisode, EngineState, WindowScore, version_name

log = logging.getLogger("tuneloop.monitor")
Judged = tuple[str, Outcome | None, dict[str, Any]]


class CanaryStream:
    """Reads canaries and keeps what was read; any thread may. `stopping` is asked before every text, `rng` draws how
    each round is read."""

    def __init__(
        self,
        registry: Registry,
        settings: MonitorSettings,
        client: httpx.Client,
        metrics: Metrics,
        stopping: Callable[[], bool] = lambda: False,
        rng: random.Random | None = None,
        *,
        signal: str = SERVED_MODEL_CHANGE,
    ) -> None:
        self.signal = signal
        self.registry = registry
        self.settings = settings
        self.stopping = stopping
        self._client = client
        self._metrics = metrics
        self._rng = rng or random.Random()

    def read(self, engine: EngineState, name: str) -> Round:
        """One reading of every canary, in any order and so many at once, as traffic comes.

        Both are drawn anew for each round, so that the baseline's and fresh ones are alike while the model is: the
        test leans on it.
        """
        texts = list(canaries())
        order = self._rng.sample(range(len(texts)), len(texts))
        read = read_texts(
            self._client,
            engine.url,
            name,
            [texts[index] for index in order],
            concurrency=self._rng.randint(1, self.settings.scorer_concurrency),
            stopping=self.stopping,
        )
        by_text = dict(zip(order, read, strict=True))
        return np.array([token.logprob for index in range(len(texts)) for token in by_text[index]])

    def store(
        self,
        model: str,
        version: int,
        newest: WindowScore | None,
        found: Judged,
        *,
        n: int,
        start: datetime,
    ) -> WindowScore:
        """Keep a reading as the stream's next score; what is in the registry then, which another monitor may have
        written."""
        verdict, outcome, detail = found
        number = 0 if newest is None else int(newest.detail["window"]) + 1
        now, gamma = self.registry.clock(), self.settings.mean_run_length
        score = WindowScore.model_validate(
            {
                "id": score_id(model, version, self.signal, number),
                "at": now,
                "model": model,
                "version": version,
                "signal": self.signal,
                "window_start": start,
                "window_end": now,
                "n": n,
                "statistic": outcome.statistic if outcome else 0.0,
                "threshold": outcome.threshold if outcome else 0.0,
                "p_value": outcome.p_value if outcome else None,
                "mean_run_length": gamma,
                "verdict": verdict,
                "detail": {"detector": DETECTORS[self.signal], "mean_run_length": gamma, "window": number} | detail,
            }
        )
        if not self.registry.episodes.add_score(score):
            return self.registry.episodes.score(score.id)  # another monitor was first; its reading stands
        self._metrics.judged(score, now)
        log.info("%s %s: %.4g, %s", version_name(model, version), score.signal, score.statistic, verdict)
        return score

    def wants_baseline(self, newest: WindowScore | None, digest: str | None = None) -> bool:
        """Whether what serves now is what it is to be held against: nothing was read yet, or a person accepts it.

        Args:
            newest: the last reading.
            digest: of what is read; None: the canary texts.
        """
        return newest is None or self._is_accepted(newest, digest or texts_digest())

    def _is_accepted(self, newest: WindowScore, digest: str) -> bool:
        """Whether a person resolved an episode since the newest baseline: what serves now is what is meant to."""
        try:
            since = self.baseline_of(newest)
        except NotFound:
            return True
        if since.detail["canaries"] != digest:
            return True  # the texts themselves have changed
        return any(
            ended_by_person(e) and e.resolved_at is not None and e.resolved_at > since.at
            for e in self.episodes(newest.model, newest.version)
        )

    def baseline_of(self, newest: WindowScore) -> WindowScore:
        """The baseline a score is, or was held against.

        Raises:
            NotFound: retention took it.
        """
        return newest if "rounds" in newest.detail else self.registry.episodes.score(newest.detail["baseline"])

    def newest(self, model: str, version: int) -> WindowScore | None:
        """The last reading."""
        return next(iter(last_scores(self.registry, model, version, self.signal, 1)), None)

    def scores(self, model: str, version: int, limit: int) -> Sequence[WindowScore]:
        """The last readings, the oldest first."""
        return self.registry.episodes.scores(model, version=version, signal=self.signal, limit=limit)

    def episodes(self, model: str, version: int) -> Sequence[AlertEpisode]:
        """Everything that was told of the version."""
        found = self.registry.episodes.all(model, version=version, signal=self.signal)
        for row in found.unreadable:  # of what is over none is needed; an open one is refused by `Episodes.open`
            log.error("left out of what %s has been through: %s", version_name(model, version), row)
        return found


def texts_digest() -> str:
    """Which texts are read."""
    return sha256("\n".join(canaries()).encode()).hexdigest()
