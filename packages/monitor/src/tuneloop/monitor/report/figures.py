"""What the report shows, as values: `report.json` is exactly this; nothing is read or drawn here."""

from __future__ import annotations

from decimal import Decimal

from pydantic import AwareDatetime

from tuneloop.monitor.bias.check import BiasResult
from tuneloop.registry.nouns import AlertEpisode, Interval, Noun, RetrainingRequest, RetrainingState
from tuneloop.registry.rollouts.rollout import Rollout


class VersionRow(Noun):
    """A version and what is known of it."""

    version: int
    name: str
    created_at: AwareDatetime
    kind: str
    parent: int | None
    request_id: str | None
    data_rows: int
    gate: str
    metrics: dict[str, float]
    loss: tuple[tuple[int, float], ...]  # (step, training loss)


class Revision(Noun):
    """A change of the route."""

    revision: int
    at: AwareDatetime
    split: str
    by: str
    reason: str


class TrafficOverTime(Noun):
    """Answers by served version in equal spans of time; `none` are requests no version answered."""

    span_s: float
    starts: tuple[AwareDatetime, ...]
    answers: dict[str, tuple[int, ...]]  # version name or `none` → one number per span


class Spread(Noun):
    """A distribution of times."""

    n: int
    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]
    percentiles_ms: dict[str, float]


class WindowPoint(Noun):
    """One judged window of a stream."""

    at: AwareDatetime  # its last record
    version: int
    statistic: float
    threshold: float
    p_value: float | None
    verdict: str


class Retrained(Noun):
    """A retraining request and what its runs took."""

    request: RetrainingRequest
    runs: int
    waited_s: float | None  # filed → first began to train
    hours: float  # by the clock, all its runs
    cost_usd: Decimal | None  # None: the price of some run is not known


class RetrainingHistory(Noun):
    """What became of the model's retraining requests."""

    requests: tuple[Retrained, ...]  # the newest first
    by_state: dict[RetrainingState, int]
    ended: int
    shipped: Interval | None  # their share of those that ended; None while nothing has


class Figures(Noun):
    """Everything on the page."""

    model: str
    made_at: AwareDatetime
    champion: str
    split: str
    revision: int
    requests: int  # on record; the newest ones where there are more than are read
    answered: int
    corrections: int
    versions: tuple[VersionRow, ...]
    base: str
    perplexity: dict[str, dict[str, float]]  # held-out set → base or version name → perplexity
    revisions: tuple[Revision, ...]
    traffic: TrafficOverTime | None
    drift: dict[str, tuple[WindowPoint, ...]]  # signal → windows in order of time
    mean_run_length: int | None
    latency: dict[str, Spread]  # `total`, `ttft`
    episodes: tuple[AlertEpisode, ...]
    retraining: RetrainingHistory
    bias: tuple[BiasResult, ...] = ()  # the newest check of each version in the route that was checked
    rollout: Rollout | None  # the one that is open, with its last judgement

    @property
    def open_episodes(self) -> tuple[AlertEpisode, ...]:
        """Those not resolved."""
        return tuple(episode for episode in self.episodes if episode.state != "resolved")

    @property
    def held_out_metrics(self) -> list[str]:
        """The metrics the table of versions has a column for."""
        keys = {key for version in self.versions for key in version.metrics}
        return sorted(key for key in keys if key.startswith(("perplexity.", "bleu.")))
