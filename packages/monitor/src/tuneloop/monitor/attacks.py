"""When attacks were on, as far as guards have caught them: while they are, nothing is asked to be trained, and what was
recorded meanwhile is never learned from.

It is over for retraining once its own signal has been quiet for as long as an episode has to be, or nobody could see it
for so long, whatever else keeps the episode open. It reaches to the end of the window after the last that alarmed: of
the one in which it ended it may be too small a part to be seen. What no window has been judged of yet may be one,
and waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuneloop.monitor.clearing import LATEST, is_quiet, is_unspoken
from tuneloop.monitor.reference import score_id
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.signals import INJECTIONS, windowed
from tuneloop.registry import Registry
from tuneloop.registry.evidence import findings_of, part_of, since_of, window_of
from tuneloop.registry.nouns import AlertEpisode, WindowScore


@dataclass(frozen=True)
class Attacks:
    """What attacks on a model mean for an episode's retraining."""

    on: AlertEpisode | None = None  # the open episode of one that is not over
    until: datetime | None = None  # the end of the last that reached into the episode's time
    looked_until: datetime | None = None  # how far was looked; None: nothing looks for them


def is_attack(episode: AlertEpisode) -> bool:
    """Whether guards have caught more attacks than before in it."""
    return INJECTIONS in findings_of(episode)


def last_reached(
    registry: Registry, model: str, version: int, since: datetime, signal: str = INJECTIONS
) -> list[WindowScore]:
    """The last window that a signal alarmed in, of those that reach into the time from `since` on, and, if it is
    judged, the one after it, into which its cause may have reached unseen; none: nothing alarmed."""
    raised = registry.episodes.scores(model, version=version, signal=signal, since=since, verdict="drift")
    alarms = [score for score in raised if score.window_end > since]
    if not alarms:
        return []
    last = max(alarms, key=lambda score: int(score.detail["window"]))
    next_id = score_id(model, version, signal, int(last.detail["window"]) + 1)
    return [last, *registry.episodes.scores_of([next_id])]


def reached_until(
    registry: Registry, model: str, version: int, since: datetime, signal: str = INJECTIONS
) -> datetime | None:
    """Until when what a signal alarmed for may have lasted; see `last_reached`."""
    reached = last_reached(registry, model, version, since, signal)
    return max((score.window_end for score in reached), default=None)


def attacks_during(
    registry: Registry,
    episode: AlertEpisode,
    still_open: Sequence[AlertEpisode],
    since: datetime,
    settings: MonitorSettings,
) -> Attacks:
    """What guards caught since an episode began, and whether that is over."""
    model, version, scores = episode.model, episode.version, registry.episodes.scores
    until = reached_until(registry, model, version, since)

    under = raised_still(registry, still_open, INJECTIONS, settings)
    newest = scores(model, version=version, signal=INJECTIONS, limit=1)
    looked = [score.window_end for score in newest if score.verdict != "not enough data"]
    return Attacks(under, until, looked[0] if looked else None)


def raised_still(
    registry: Registry, still_open: Sequence[AlertEpisode], signal: str, settings: MonitorSettings
) -> AlertEpisode | None:
    """The first open episode with a signal that is watched and has not been quiet for as long as an episode has to be,
    nor beyond anybody's sight for so long, whatever else keeps it open."""
    enough = settings.clear_after, settings.clear_after * settings.window
    limit = LATEST * settings.clear_after * settings.cut_into
    for episode in still_open if signal in windowed(settings) else ():
        if signal in findings_of(episode):
            recent = registry.episodes.scores(episode.model, version=episode.version, signal=signal, limit=limit)
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
