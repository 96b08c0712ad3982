"""What the report shows, as values: `report.json` is exactly this; nothing is read or drawn here."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from pydantic import AwareDatetime

from tuneloop.monitor.bias.check import BiasResult
from tuneloop.registry.experiments.report import Report
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


class HeatMap(Noun):
    """Answers by when they came and how long they took."""

    span_s: float
    starts: tuple[AwareDatetime, ...]
    bounds_ms: tuple[float, ...]  # of the rows: one more than there are
    answers: tuple[tuple[int, ...], ...]  # one row of numbers per span; all 0: nothing was answered then


class Middle(NamedTuple):
    """Of one span's values."""

    n: int
    p50: float
    p95: float


class SpeedOverTime(Noun):
    """How fast answers came; None where there was nothing to measure."""

    span_s: float
    starts: tuple[AwareDatetime, ...]
    requests_per_s: tuple[float, ...]
    tokens_per_s: tuple[float, ...]  # written
    between_tokens_ms: tuple[Middle | None, ...]  # of streams: mean of each
    queue_ms: tuple[Middle | None, ...]  # arrival → sent to the engine


class GuardsOverTime(Noun):
    """In how many requests guards found what."""

    span_s: float
    starts: tuple[AwareDatetime, ...]
    requests: tuple[int, ...]
    found: dict[str, tuple[int, ...]]  # what → requests of each span
    shares: dict[str, Interval]  # what → share of all requests


class Quantile(Noun):
    """A quantile and its interval, open where there are too few values."""

    estimate: float
    low: float | None
    high: float | None


class Slice(Noun):
    """How a part of the traffic did; None: too few to say."""

    field: str
    value: str
    requests: int
    failed: Interval | None  # status 500 and above
    p95_ms: Quantile | None  # of answers
    thumbs_down: Interval | None  # of thumbs
    corrected: Interval | None  # of answers
    refused: Interval | None  # of answers with text on record


class WindowPoint(Noun):
    """One judged window of a stream."""

    at: AwareDatetime  # its last record
    version: int
    statistic: float
    threshold: float
    p_value: float | None
    verdict: str


class SignalState(Noun):
    """The newest window of a signal, and how its windows went."""

    signal: str
    newest: WindowPoint
    reason: str  # why there is not enough data; else empty
    windows: int
    alarms: int


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
    signals: tuple[SignalState, ...]
    unjudged_s: dict[str, float]  # signal of the champion → for how long it was looked at and not judged
    latency: dict[str, Spread]  # `total`, `ttft`
    heat: HeatMap | None
    speed: SpeedOverTime | None
    guards: GuardsOverTime | None
    slices: tuple[Slice, ...]
    experiments: tuple[Report, ...]  # those that have begun, the newest first
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
