"""When signals alarmed, how far that reached, and whether it is over for retraining: what an episode holds besides may
keep it open for longer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tuneloop.monitor.clearing import LATEST, is_quiet, is_unspoken
from tuneloop.monitor.outliving import since_when, version_of
from tuneloop.monitor.reference import score_id
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import windowed
from tuneloop.registry import Registry
from tuneloop.registry.evidence import findings_of, part_of, since_of, window_of
from tuneloop.registry.nouns import AlertEpisode, WindowScore


def last_reached(registry: Registry, model: str, version: int, signal: str, since: datetime) -> list[WindowScore]:
    """The last window that a signal alarmed in, of those that reach into the time from `since` on, and, if it is
    judged, the one after it, into which its cause may have reached unseen; none: nothing alarmed."""
    raised = registry.episodes.scores(model, version=version, signal=signal, since=since, verdict="drift")
    alarms = [score for score in raised if score.window_end > since]
    if not alarms:
        return []
    last = max(alarms, key=lambda score: int(score.detail["window"]))
    next_id = score_id(model, version, signal, int(last.detail["window"]) + 1)
    return [last, *registry.episodes.scores_of([next_id])]


def reached_until(registry: Registry, model: str, version: int, signal: str, since: datetime) -> datetime | None:
    """Until when what a signal alarmed for may have lasted; see `last_reached`."""
    reached = last_reached(registry, model, version, signal, since)
    return max((score.window_end for score in reached), default=None)


def raised_still(
    registry: Registry, still_open: Sequence[AlertEpisode], signal: str, settings: MonitorSettings
) -> AlertEpisode | None:
    """The first open episode with a signal that is watched and has not been quiet for as long as an episode has to be,
    nor beyond anybody's sight for so long, whatever else keeps it open."""
    enough = settings.clear_after, settings.clear_after * settings.window
    limit = LATEST * settings.clear_after * settings.cut_into
    for episode in still_open if signal in windowed(settings) else ():
        if signal in findings_of(episode):
            version, since = version_of(episode), since_when(episode)
            recent = registry.episodes.scores(episode.model, version=version, signal=signal, since=since, limit=limit)
            if not (is_quiet(recent, *enough) or is_unspoken(recent, *enough)):
                return episode
    return None


def alarmed_until(episode: AlertEpisode) -> datetime:
    """The end of the newest window that raised any of its signals; where none tells, its beginning."""
    ends = [window[1] for window in _windows(findings_of(episode).values())]
    return max(ends, default=since_of(episode))


def seen_since(episode: AlertEpisode, until: datetime, signals: list[str]) -> bool:
    """Whether one of these signals has alarmed in a window that is wholly later."""
    findings = findings_of(episode)
    return any(window[0] >= until for window in _windows(findings.get(signal, {}) for signal in signals))


def _windows(findings: Iterable[Mapping[str, Any]]) -> Iterator[tuple[datetime, datetime]]:
    """Of each finding the first window that raised it, and the last."""
    for finding in findings:
        for found in (finding, part_of(finding, "last")):
            if (window := window_of(found)) is not None:
                yield window
