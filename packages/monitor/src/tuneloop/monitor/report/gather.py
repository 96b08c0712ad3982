"""Gathering a report's figures from the registry. Reads at most `MOST_RECORDS` requests, the newest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from tuneloop.monitor.bias.check import kept_result
from tuneloop.monitor.latency import percentiles
from tuneloop.monitor.report.figures import (
    Figures,
    Retrained,
    RetrainingHistory,
    Revision,
    SignalState,
    Spread,
    TrafficOverTime,
    VersionRow,
    WindowPoint,
)
from tuneloop.monitor.report.over_time import Spans, guards, heat_map, speed
from tuneloop.monitor.report.slices import slices_of
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import DETECTORS, DETECTORS_OF_TRIALS
from tuneloop.monitor.unjudged import unjudged_s
from tuneloop.registry import Registry
from tuneloop.registry.corrections import corrects
from tuneloop.registry.experiments import conduct
from tuneloop.registry.experiments.report import Report
from tuneloop.registry.nouns import RequestRecord, Version, WindowScore, version_name
from tuneloop.registry.retraining.history import history_of

MOST_RECORDS = 50_000
MOST_EXPERIMENTS = 5
BINS = 40


def gather(registry: Registry, model: str) -> Figures:
    """Everything the report of a model shows.

    Raises:
        NotFound: there is no such model, or it has no route yet.
        Unreadable: what a version in the route keeps of its check for bias is damaged.
    """
    route = registry.route(model)
    versions = sorted(registry.versions.all(model), key=lambda version: version.version)
    records = registry.traffic.window(model, newest=MOST_RECORDS)
    scores = registry.episodes.scores(model)
    history = reversed(registry.routes.history(model))
    answered = [record for record in records if record.status == 200]
    feedback = registry.traffic.feedback_for([record.id for record in records])
    spans = Spans.of(records) if records else None
    return Figures(
        model=model,
        made_at=registry.clock(),
        champion=version_name(model, route.champion),
        split=route.split_text,
        revision=route.revision,
        requests=len(records),
        answered=len(answered),
        corrections=sum(any(map(corrects, items)) for items in feedback.values()),
        versions=tuple(_version_row(registry, version) for version in versions),
        base=versions[0].base if versions else "base",
        perplexity=_perplexity(registry, versions),
        revisions=tuple(
            Revision(revision=r.revision, at=r.at, split=r.split_text, by=r.by, reason=r.reason) for r in history
        ),
        traffic=traffic_over_time(model, spans, records) if spans else None,
        drift={signal: points for signal in DETECTORS if (points := _points(scores, signal))},
        mean_run_length=_budget(scores),
        signals=tuple(_states(scores)),
        unjudged_s={signal: s for signal, s in unjudged_s(registry, MonitorSettings.load(), model).items() if s > 0},
        latency={
            name: spread
            for name, spread in (
                ("total", _spread([record.total_ms for record in answered])),
                ("ttft", _spread([record.ttft_ms for record in answered if record.ttft_ms is not None])),
            )
            if spread is not None
        },
        heat=heat_map(spans, records) if spans else None,
        speed=speed(spans, records) if spans else None,
        guards=guards(spans, records) if spans else None,
        slices=tuple(slices_of(records, feedback)),
        experiments=tuple(_experiments(registry, model)),
        episodes=tuple(registry.episodes.all(model).whole()),
        retraining=_retraining(registry, model),
        bias=tuple(
            found
            for version in versions
            if version.version in route.split and (found := kept_result(registry, version)) is not None
        ),
        rollout=registry.rollouts.open(model),
    )


def _budget(scores: Sequence[WindowScore]) -> int | None:
    """What the newest window that can raise an alarm notes; a trial's notes none, though its column is never empty."""
    return next((s.detail["mean_run_length"] for s in reversed(scores) if "mean_run_length" in s.detail), None)


def traffic_over_time(model: str, spans: Spans, records: Sequence[RequestRecord]) -> TrafficOverTime:
    """Answers by served version in each span."""
    counts: dict[str, Counter[int]] = {}
    for record in records:
        answered = record.status == 200 and record.served_version is not None
        name = version_name(model, record.served_version) if answered and record.served_version else "none"
        counts.setdefault(name, Counter())[spans.which(record.at)] += 1
    return TrafficOverTime(
        span_s=spans.span_s,
        starts=spans.starts,
        answers={name: tuple(counts[name][i] for i in range(spans.n)) for name in sorted(counts)},
    )


def _states(scores: Sequence[WindowScore]) -> Iterator[SignalState]:
    """Each signal as its newest window left it, of the version that has it."""
    for signal in (*DETECTORS, *DETECTORS_OF_TRIALS):
        of_signal = [score for score in scores if score.signal == signal]
        if of_signal:
            newest = of_signal[-1]
            own = [score for score in of_signal if score.version == newest.version]
            (point,) = _points([newest], signal)
            yield SignalState(
                signal=signal,
                newest=point,
                reason=str(newest.detail.get("reason", "")) if newest.verdict == "not enough data" else "",
                windows=len(own),
                alarms=sum(score.verdict == "drift" for score in own),
            )


def _experiments(registry: Registry, model: str) -> Iterator[Report]:
    begun = [one for one in registry.experiments.all(model).whole() if one.started_at is not None]
    begun.sort(key=lambda one: one.started_at or one.created_at, reverse=True)
    for one in begun[:MOST_EXPERIMENTS]:
        yield conduct.report(registry, one.id)


def _retraining(registry: Registry, model: str) -> RetrainingHistory:
    requests, runs = registry.retraining.all(model).whole(), registry.retraining.runs(model).whole()
    found = history_of(requests, runs, registry.clock())
    return RetrainingHistory(
        requests=tuple(
            Retrained(request=t.request, runs=t.runs, waited_s=t.waited_s, hours=t.hours, cost_usd=t.cost_usd)
            for t in found.requests
        ),
        by_state=dict(found.by_state),
        ended=found.ended,
        shipped=found.shipped,
    )


def _version_row(registry: Registry, version: Version) -> VersionRow:
    report = registry.gates.latest(version.model, version.version)
    return VersionRow(
        version=version.version,
        name=version.name,
        created_at=version.created_at,
        kind=version.kind,
        parent=version.parent,
        request_id=version.request_id,
        data_rows=version.data_rows,
        gate=report.verdict if report else "not judged",
        metrics=version.metrics,
        loss=tuple(registry.versions.metric_history(version.run_id, "loss")),
    )


def _perplexity(registry: Registry, versions: Sequence[Version]) -> dict[str, dict[str, float]]:
    """Held-out set → base or version → perplexity.

    A run measures what it starts from before its first step: the base, or the parent, also on sets new to the parent.
    """
    found: dict[str, dict[str, float]] = {}
    for version in versions:
        for key, value in version.metrics.items():
            kind, _, held_out = key.partition(".")
            if kind != "perplexity":
                continue
            series = found.setdefault(held_out, {})
            points = registry.versions.metric_history(version.run_id, key)
            started_from = "base" if version.parent is None else version_name(version.model, version.parent)
            if len(points) > 1:
                series.setdefault(started_from, points[0][1])
            series[version.name] = value
    return found


def _points(scores: Sequence[WindowScore], signal: str) -> tuple[WindowPoint, ...]:
    return tuple(
        WindowPoint(
            at=score.window_end,
            version=score.version,
            statistic=score.statistic,
            threshold=score.threshold,
            p_value=score.p_value,
            verdict=score.verdict,
        )
        for score in scores
        if score.signal == signal
    )


def _spread(values_ms: Sequence[float]) -> Spread | None:
    positive = [value for value in values_ms if value > 0]
    if not positive:
        return None
    low, high = min(positive) * 0.95, max(positive) * 1.05
    counts, edges = np.histogram(positive, bins=np.geomspace(low, high, BINS + 1))
    return Spread(
        n=len(positive),
        edges_ms=tuple(round(float(edge), 3) for edge in edges),
        counts=tuple(int(count) for count in counts),
        percentiles_ms=percentiles(positive),
    )
